"""Makes tables of trials: accuracy against the bias norm, and the contribution of each of three choices.

A trial is one training run with one seed, evaluated always on and under its gate. Intervals of several seeds are over
seeds and problems, those of one seed over problems only: they do not say what another seed would have given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import gammaln

from interventions.activations import Array
from reft_math.scoring.statistics import crossed_interval, wilson_interval

GATED, ALWAYS = "gated", "always_on"
FACTORS = ("truncation", "norm_control", "gate")

TableRow = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """A training run and its scores.

    Attributes:
        about: Values that identify it: a curve and a target norm, or levels of `FACTORS`; and its seed.
        achieved: The final bias norm.
        gate: The gate.
        validation: Summary on validation problems, by decoder.
        test: Summary on test problems, by decoder.
        correct: Whether each test problem was solved, by decoder.
        shares: Shares of biases and changes along the number directions.
    """

    about: dict[str, Any]
    achieved: float
    gate: str
    validation: Mapping[str, Mapping[str, Any]]
    test: Mapping[str, Mapping[str, Any]]
    correct: Mapping[str, Mapping[str, bool]]
    shares: Mapping[str, float]


def trial_rows(trials: Sequence[Trial]) -> list[TableRow]:
    """Returns a row for each trial and decoder."""
    rows = []
    for trial in trials:
        for decoder, summary in trial.test.items():
            low, high = summary["interval_95"]
            rows.append(
                {
                    **trial.about,
                    "achieved": trial.achieved,
                    "decoder": decoder,
                    "gate": trial.gate if decoder == GATED else "always",
                    "validation": trial.validation[decoder]["accuracy"],
                    "correct": summary["correct"],
                    "total": summary["total"],
                    "accuracy": summary["accuracy"],
                    "low": low,
                    "high": high,
                    "p_vs_base": summary["mcnemar_vs_base"]["p_value"],
                    **{f"{name}_share": share for name, share in trial.shares.items()},
                }
            )
    return rows


def norm_rows(trials: Sequence[Trial]) -> list[TableRow]:
    """Returns a row per curve, decoder and target norm, over seeds; ``chosen`` is the best on validation problems.

    Of norms that are equally good there, ``tied`` many, the smallest is chosen. ``at_edge`` says that the chosen is the
    first or last of the grid: a better one may lie beyond.
    """
    rows: list[TableRow] = []
    for curve in dict.fromkeys(trial.about["curve"] for trial in trials):
        of_curve = [trial for trial in trials if trial.about["curve"] == curve]
        for decoder in dict.fromkeys(name for trial in of_curve for name in trial.test):
            by_norm = {
                norm: [trial for trial in of_curve if trial.about["target_norm"] == norm]
                for norm in sorted({trial.about["target_norm"] for trial in of_curve})
            }
            solved = {norm: _solved(members, decoder) for norm, members in by_norm.items()}
            best = [norm for norm, count in solved.items() if count == max(solved.values())]
            for norm, members in by_norm.items():
                is_chosen = norm == best[0]
                choice = {
                    "chosen": is_chosen,
                    "tied": len(best) if is_chosen else None,
                    "at_edge": norm in (min(by_norm), max(by_norm)) if is_chosen else None,
                }
                rows.append({"curve": curve, "decoder": decoder, **_norm_row(norm, members, decoder), **choice})
    return rows


def _solved(trials: Sequence[Trial], decoder: str) -> int:
    """Counts solved validation problems over seeds, as whole numbers, so that ties are exact."""
    return sum(trial.validation[decoder]["correct"] for trial in trials)


def _norm_row(norm: float, trials: Sequence[Trial], decoder: str) -> TableRow:
    tried = sum(trial.validation[decoder]["total"] for trial in trials)
    return {
        "target_norm": norm,
        "seeds": len(trials),
        "achieved": float(np.mean([trial.achieved for trial in trials])),
        "validation": _solved(trials, decoder) / tried,
        "total": trials[0].test[decoder]["total"],
        **_accuracy(_outcomes(trials, decoder)),
    }


def share_rows(trials: Sequence[Trial], widths: Mapping[str, int]) -> list[TableRow]:
    """Returns a row per curve, target norm and share: mean over seeds, least and greatest, and the value by chance.

    Args:
        trials: Trials of all seeds.
        widths: Width of each share's space, by the share's name.
    """
    groups: dict[tuple[str, float], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.about["curve"], trial.about["target_norm"]), []).append(trial)
    rows = []
    for (curve, target), members in sorted(groups.items()):
        for name, width in widths.items():
            values = [trial.shares[name] for trial in members]
            rows.append(
                {
                    "curve": curve,
                    "target_norm": target,
                    "achieved": float(np.mean([trial.achieved for trial in members])),
                    "share_of": name,
                    "seeds": len(values),
                    "share": float(np.mean(values)),
                    "least": min(values),
                    "most": max(values),
                    "chance": chance_share(width),
                }
            )
    return rows


def chance_share(width: int) -> float:
    """Returns ``E|uᵀv| = Γ(d/2) / (√π Γ((d+1)/2))`` for unit ``u``, and ``v`` uniform on the sphere in d dimensions."""
    return float(math.exp(gammaln(width / 2) - gammaln((width + 1) / 2)) / math.sqrt(math.pi))


def cell_rows(trials: Sequence[Trial]) -> list[TableRow]:
    """Returns a row for each of the eight combinations of `FACTORS`, over seeds; ``gate`` means gated decoding."""
    rows = []
    for (truncation, norm_control), members in _cells(trials).items():
        for decoder in (GATED, ALWAYS):
            rows.append(
                {
                    "truncation": truncation,
                    "norm_control": norm_control,
                    "gate": decoder == GATED,
                    "gates": " ".join(sorted({trial.gate for trial in members})) if decoder == GATED else "always",
                    "seeds": len(members),
                    "achieved": float(np.mean([trial.achieved for trial in members])),
                    "total": members[0].test[decoder]["total"],
                    **_accuracy(_outcomes(members, decoder)),
                }
            )
    return rows


def effect_rows(trials: Sequence[Trial]) -> list[TableRow]:
    """Returns ``E_f = mean over other factors of (accuracy with f − accuracy without f)``, paired by seed and problem.

    On average over the others, and with the other two on: a factor may be needed only where the others are not there.
    Of one seed, truncation and norm control have no interval: what they change is trained, and another seed's training
    might have differed as much.
    """
    values = {
        (truncation, norm_control, decoder == GATED): _outcomes(members, decoder)
        for (truncation, norm_control), members in _cells(trials).items()
        for decoder in (GATED, ALWAYS)
    }
    rows = []
    for index, factor in enumerate(FACTORS):
        for others in ("any", "on"):
            with_it = [levels for levels in values if levels[index] and (others == "any" or all(levels))]
            gains = np.mean([values[levels] - values[_without(levels, index)] for levels in with_it], axis=0)
            is_seen = len(gains) > 1 or factor == "gate"
            low, high = (crossed_interval(gains) if is_seen else None) or (None, None)
            effect = {"effect": float(gains.mean()), "low": low, "high": high, "over": _over(gains)}
            rows.append({"factor": factor, "others": others, "seeds": len(gains), **effect})
    return rows


def _without(levels: tuple[bool, ...], index: int) -> tuple[bool, bool, bool]:
    first, second, third = (level and place != index for place, level in enumerate(levels))
    return first, second, third


def _cells(trials: Sequence[Trial]) -> dict[tuple[bool, bool], list[Trial]]:
    cells: dict[tuple[bool, bool], list[Trial]] = {}
    for trial in trials:
        cells.setdefault((trial.about["truncation"], trial.about["norm_control"]), []).append(trial)
    return cells


def _outcomes(trials: Sequence[Trial], decoder: str) -> Array:
    """Returns 1.0 for solved problems, ``(seed, problem)``."""
    problems = list(trials[0].correct[decoder])
    return np.array([[trial.correct[decoder][name] for name in problems] for trial in trials], dtype=np.float64)


def _accuracy(outcomes: Array) -> TableRow:
    """Returns accuracy with its 95 % interval: Wilson's if all seeds solved the same problems."""
    seeds_agree = (outcomes == outcomes[0]).all()
    counts = int(outcomes[0].sum()), outcomes.shape[1]
    low, high = (wilson_interval(*counts) if seeds_agree else crossed_interval(outcomes)) or (None, None)
    return {"accuracy": float(outcomes.mean()), "low": low, "high": high, "over": _over(outcomes)}


def _over(table: Array) -> str:
    """Returns what an interval is over: problems, or also seeds."""
    return "seeds and problems" if len(table) > 1 else "problems"
