"""Tables of trials: accuracy against the bias norm, and what each of three choices contributes.

A trial is one training run with one seed, evaluated always on and under its gate. Accuracies of several seeds are means
over problems of a problem's mean over seeds, and so are their intervals: they speak of other problems, not other seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import gammaln

from reft_math.evaluation import mean_interval

GATED, ALWAYS = "gated", "always_on"
FACTORS = ("truncation", "norm_control", "gate")

Row = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """A training run and its scores.

    Attributes:
        about: What tells it from others: a curve and a target norm, or levels of `FACTORS`; and its seed.
        achieved: The bias norm at its end.
        gate: Its gate.
        validation: Accuracy on validation problems, by decoder.
        test: Summary on test problems, by decoder.
        correct: Whether each test problem was solved, by decoder.
        shares: Of biases and changes along the number directions.
    """

    about: dict[str, Any]
    achieved: float
    gate: str
    validation: Mapping[str, float]
    test: Mapping[str, Mapping[str, Any]]
    correct: Mapping[str, Mapping[str, bool]]
    shares: Mapping[str, float]


def trial_rows(trials: Sequence[Trial]) -> list[Row]:
    """A row for each trial and decoder."""
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
                    "validation": trial.validation[decoder],
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


def norm_rows(trials: Sequence[Trial]) -> list[Row]:
    """A row for each curve, decoder and target norm, over seeds; ``chosen`` is the norm best on validation problems.

    Of norms that are equally good there the smallest is chosen.
    """
    rows: list[Row] = []
    for curve in dict.fromkeys(trial.about["curve"] for trial in trials):
        of_curve = [trial for trial in trials if trial.about["curve"] == curve]
        for decoder in dict.fromkeys(name for trial in of_curve for name in trial.test):
            found = [
                _norm_row(curve, decoder, target, [trial for trial in of_curve if trial.about["target_norm"] == target])
                for target in sorted({trial.about["target_norm"] for trial in of_curve})
            ]
            best = max(row["validation"] for row in found)
            chosen = next(row["target_norm"] for row in found if row["validation"] == best)
            rows += [{**row, "chosen": row["target_norm"] == chosen} for row in found]
    return rows


def _norm_row(curve: str, decoder: str, target: float, trials: Sequence[Trial]) -> Row:
    return {
        "curve": curve,
        "decoder": decoder,
        "target_norm": target,
        "seeds": len(trials),
        "achieved": float(np.mean([trial.achieved for trial in trials])),
        "validation": float(np.mean([trial.validation[decoder] for trial in trials])),
        "total": trials[0].test[decoder]["total"],
        **_estimate("accuracy", list(_by_problem(trials, decoder).values())),
    }


def share_rows(trials: Sequence[Trial], widths: Mapping[str, int]) -> list[Row]:
    """A row for each curve, target norm and share: mean over seeds, the least and the most, and what chance gives.

    Args:
        trials: Of all seeds.
        widths: Of the space each share is in, by its name.
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
    """``E|uᵀv| = Γ(d/2) / (√π Γ((d+1)/2))`` for unit ``u``, and ``v`` uniform on the sphere in d dimensions."""
    return float(math.exp(gammaln(width / 2) - gammaln((width + 1) / 2)) / math.sqrt(math.pi))


def cell_rows(trials: Sequence[Trial]) -> list[Row]:
    """A row for each of the eight combinations of `FACTORS`, over seeds; ``gate`` is on where decoding is gated."""
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
                    **_estimate("accuracy", list(_by_problem(members, decoder).values())),
                }
            )
    return rows


def effect_rows(trials: Sequence[Trial]) -> list[Row]:
    """``E_f = mean over the other factors of (accuracy with f − accuracy without f)``, paired by problem.

    On average over the others, and with the other two on: a factor may be needed only where the others are not there.
    """
    cells = {
        (truncation, norm_control, decoder == GATED): _by_problem(members, decoder)
        for (truncation, norm_control), members in _cells(trials).items()
        for decoder in (GATED, ALWAYS)
    }
    problems = list(next(iter(cells.values())))
    values = {levels: np.array([found[name] for name in problems]) for levels, found in cells.items()}
    rows = []
    for index, factor in enumerate(FACTORS):
        for others in ("any", "on"):
            with_it = [levels for levels in values if levels[index] and (others == "any" or all(levels))]
            gains = [values[levels] - values[_without(levels, index)] for levels in with_it]
            rows.append({"factor": factor, "others": others, **_estimate("effect", np.mean(gains, axis=0).tolist())})
    return rows


def _without(levels: tuple[bool, ...], index: int) -> tuple[bool, bool, bool]:
    first, second, third = (level and place != index for place, level in enumerate(levels))
    return first, second, third


def _cells(trials: Sequence[Trial]) -> dict[tuple[bool, bool], list[Trial]]:
    cells: dict[tuple[bool, bool], list[Trial]] = {}
    for trial in trials:
        cells.setdefault((trial.about["truncation"], trial.about["norm_control"]), []).append(trial)
    return cells


def _by_problem(trials: Sequence[Trial], decoder: str) -> dict[str, float]:
    """Each problem's mean over seeds."""
    first = trials[0].correct[decoder]
    return {name: float(np.mean([trial.correct[decoder][name] for trial in trials])) for name in first}


def _estimate(name: str, values: Sequence[float]) -> Row:
    found = mean_interval(values)
    low, high = found["interval_95"] or (None, None)
    return {name: found["value"], "low": low, "high": high}
