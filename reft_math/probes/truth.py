"""Truth probes on a model: fits them on the base's hidden states and reads them under an adapter's interventions.

Everything is recorded when it is measured, and a stopped run resumes from its records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import PreTrainedModel

from interventions.activations import Array, check_states, pad_right, read_states
from interventions.gates import Gate, KLGate, kl_divergence, parse_gate
from interventions.hooked import HookedReftModel
from interventions.pairs import Handoff
from interventions.positions import intervention_mask
from interventions.sites import num_layers
from reft_math.commands.progress import progress
from reft_math.commands.resumable import Record, record_rows
from reft_math.decoding.teacher_forcing import closing
from reft_math.probes.files import load_probes, rounded, save_probes
from reft_math.probes.number import Probe
from reft_math.probes.number_measures import ActingAdapter
from reft_math.probes.statements import StatementPair, StatementText
from reft_math.probes.trajectory import mean_intervals

_TARGET = "truth"


@dataclass(frozen=True)
class Layer:
    """A layer's name in records and files."""

    number: int

    @property
    def id(self) -> str:
        return f"layer-{self.number}"

    def path(self, folder: Path) -> Path:
        """Returns the file of its probes."""
        return folder / "probes" / f"{self.id}.safetensors"


def fit_layers(
    model: PreTrainedModel, pairs: Sequence[StatementPair], folder: Path, batch_size: int
) -> list[list[Probe]]:
    """Fits probes of every layer's residual stream and heads on the base's hidden states.

    Args:
        model: The base.
        pairs: Pairs to fit on.
        folder: Folder for ``probes/`` and ``records/probes.jsonl``.
        batch_size: Texts per batch.

    Returns:
        Probes by layer, in the order of `part_names`.
    """
    rows = [text.token_ids for pair in pairs for text in pair.texts]
    is_true = np.tile([True, False], len(pairs))
    questions = np.repeat([pair.problem for pair in pairs], 2)

    @cache
    def states() -> tuple[Array, Array]:
        starts = progress(range(0, len(rows), batch_size), name="reading", unit="batch")
        read = [read_states(model, rows[start : start + batch_size]) for start in starts]
        stream, heads = zip(*read, strict=True)
        for part in (found := (np.concatenate(stream), np.concatenate(heads))):
            check_states(part, questions.tolist())
        return found

    def work(_: Any, missing: Sequence[Layer]) -> list[Record]:
        return [fit(layer) for layer in missing]

    def fit(layer: Layer) -> Record:
        """Fits probes and writes them to their file before the record that says they exist."""
        parts = _parts(*states(), layer.number)
        probes = [fit_truth_probe(hidden, is_true, questions) for hidden in parts]
        names = part_names(len(parts) - 1)
        save_probes(layer.path(folder), {(name, _TARGET): probe for name, probe in zip(names, probes, strict=True)})
        penalties = {name: probe.penalty for name, probe in zip(names, probes, strict=True)}
        return {"layer": layer.number, "pairs": len(pairs), "penalties": penalties}

    layers = [Layer(number) for number in range(num_layers(model))]
    found = record_rows(layers, lambda _: 0, work, folder / "records" / "probes.jsonl", "probes", 1)
    return [
        [load_probes(layer.path(folder))[name, _TARGET] for name in record["penalties"]]
        for layer, record in zip(layers, found, strict=True)
    ]


def score_pairs(
    model: PreTrainedModel,
    source: ActingAdapter | None,
    handoff: Handoff,
    pairs: Sequence[StatementPair],
    probes: Sequence[Sequence[Probe]],
    path: Path,
    name: str,
    batch_size: int,
) -> list[Record]:
    """Scores true and false texts by probes of the hidden states of a source's decoder after it has written them.

    Args:
        model: The base.
        source: The adapter and its gate; None for the base alone.
        handoff: Cache to continue from after the gate.
        pairs: Pairs to score.
        probes: The base's probes, by layer, in the order of `part_names`.
        path: File of the records.
        name: Text of the progress bar.
        batch_size: Texts per batch.

    Returns:
        For each pair ``problem``, ``position``, ``open`` (whether the gate is open after the true text and after the
        false one) and ``true`` and ``false``, log-odds ``(layer, part)``.
    """

    def work(batch: Sequence[StatementPair], missing: Sequence[StatementPair]) -> list[Record]:
        # Always the whole batch: with other rows beside it, the last digit of a state might be another.
        texts = [text for pair in batch for text in pair.texts]
        is_open, acts = [False] * len(texts), None
        if source is not None:
            acts, is_open = where_acting(source.reft_model, parse_gate(source.gate), handoff, texts)
        rows = [text.token_ids for text in texts]
        stream, heads = read_states(model, rows, None if source is None else source.reft_model, acts)
        for part in (stream, heads):
            check_states(part, [pair.problem for pair in batch for _ in pair.texts])
        odds = np.stack(
            [
                np.stack([probe.read(part) for probe, part in zip(row, _parts(stream, heads, layer), strict=True)], 1)
                for layer, row in enumerate(probes)
            ],
            axis=1,
        )
        found = {
            pair.id: {
                "problem": pair.problem,
                "position": pair.position,
                "open": is_open[2 * index : 2 * index + 2],
                "true": rounded(odds[2 * index].tolist()),
                "false": rounded(odds[2 * index + 1].tolist()),
            }
            for index, pair in enumerate(batch)
        }
        return [found[pair.id] for pair in missing]

    return record_rows(pairs, lambda pair: len(pair.true), work, path, name, max(1, batch_size // 2))


def _parts(stream: Array, heads: Array, layer: int) -> list[Array]:
    """Returns a layer's hidden states, ``(text, width)`` each, in the order of `part_names`."""
    return [stream[:, layer], *heads[:, layer].swapaxes(0, 1)]


@torch.no_grad()
def where_acting(
    reft_model: HookedReftModel, gate: Gate, handoff: Handoff, texts: Sequence[StatementText]
) -> tuple[torch.Tensor, list[bool]]:
    """Returns where interventions have acted on the states that decoding under a gate reads after writing a text.

    The gate's rule runs along the text, whoever wrote it, up to the next token: with ``C_t`` of this text the gate is
    open for that token, or has closed at it or before. While it is open the interventions act at the adapter's
    positions. Once it is closed, with ``handoff="base"`` they act nowhere: the base has read prompt and text itself.
    With ``"keep"`` they have acted on the tokens read until the gate closed, but not on the base, which draws the token
    at which a divergence closes it.

    Args:
        reft_model: The base with interventions.
        gate: A gate that draws the first tokens from the intervened model.
        handoff: Cache to continue from after the gate.
        texts: A batch of texts.

    Returns:
        Boolean ``(text, position)``, and for each text whether the gate is open for the next token.
    """
    gate = gate.on(reft_model.model.dtype)
    inputs = _inputs(texts, reft_model.model.device)
    columns = torch.arange(inputs.shape[1], device=inputs.device)
    starts = torch.tensor([len(text.prompt) for text in texts], device=inputs.device)
    answer_columns = columns[None] - starts[:, None]
    acts = intervention_mask(answer_columns, reft_model.positions)
    divergences = (
        _divergences(reft_model, gate, inputs, acts, texts)
        if isinstance(gate, KLGate)
        else [torch.zeros(len(text.answer) + 1) for text in texts]  # other gates do not need it
    )
    is_open = []
    for row, (text, kl) in enumerate(zip(texts, divergences, strict=True)):
        position, steps = closing(gate, kl)
        is_open.append(position is None)
        if position is None:
            continue
        if handoff == "base" or steps in (0, len(text.answer) + 1):
            acts[row] = False
        else:
            acts[row] &= answer_columns[row] < steps - 1  # the prompt is read at step 0, token j at step j + 1
    return acts, is_open


def _divergences(
    reft_model: HookedReftModel, gate: KLGate, inputs: torch.Tensor, acts: torch.Tensor, texts: Sequence[StatementText]
) -> list[torch.Tensor]:
    """Returns ``D_0..D_n`` along each text of n tokens, ``(n + 1,)``."""
    first = min(len(text.prompt) for text in texts) - 1
    logits = []
    for mask in (acts, torch.zeros_like(acts)):
        with reft_model.intervening(mask):
            logits.append(reft_model.model(inputs, use_cache=False, logits_to_keep=inputs.shape[1] - first).logits)
    found = []
    for row, text in enumerate(texts):
        start = len(text.prompt) - 1 - first
        mod, base = (each[row, start : start + len(text.answer) + 1] for each in logits)
        found.append(kl_divergence(mod, base, gate.direction).cpu())
    return found


def _inputs(texts: Sequence[StatementText], device: torch.device) -> torch.Tensor:
    return pad_right([text.token_ids for text in texts], device)


TableRow = dict[str, Any]


RESIDUAL = "residual"


BASE = "base"


ALL = "all"


_PENALTIES = (1e4, 1e3, 1e2, 1e1, 1.0)


_FOLDS = 3


def fit_truth_probe(hidden: Array, is_true: Array, questions: Array) -> Probe:
    """Solves ``min_{w,c} Σ log(1 + exp(−y(wᵀz + c))) + λ‖w‖²/2``, y = ±1, z the standardised h; returned for h itself.

    ``λ`` is chosen among five values by the log loss on left-out questions, in three folds.

    Args:
        hidden: ``h: (text, width)``.
        is_true: ``(text,)`` boolean.
        questions: Each text's question, ``(text,)``; at least three different ones.
    """
    hidden = np.asarray(hidden, dtype=np.float64)
    grid = {"logisticregression__C": [1 / penalty for penalty in _PENALTIES]}
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        grid,
        scoring="neg_log_loss",
        cv=GroupKFold(_FOLDS),
    ).fit(hidden, is_true, groups=questions)
    scaler, logistic = search.best_estimator_
    weight = logistic.coef_[0] / scaler.scale_
    intercept = float(logistic.intercept_[0] - weight @ scaler.mean_)
    return Probe(weight, intercept, 1 / search.best_params_["logisticregression__C"])


def part_names(heads: int) -> list[str]:
    """Returns the names of the probed parts of a layer, in column order: the residual stream, then the heads."""
    return [RESIDUAL, *map(str, range(heads))]


def _odds(records: Sequence[Record]) -> tuple[Array, Array]:
    """Returns log-odds of true and of false texts, each ``(pair, layer, part)``."""
    true, false = (np.array([record[kind] for record in records]) for kind in ("true", "false"))
    return true, false


def scores(records: Sequence[Record]) -> Array:
    """Returns ``s: (pair, layer, part)`` from records with log-odds ``true`` and ``false``, ``(layer, part)``."""
    true, false = _odds(records)
    return true - false


def probe_rows(records: Sequence[Record]) -> list[TableRow]:
    """Measures how well the base's probes tell true from false on held-out questions.

    Args:
        records: The base's records of these questions.

    Returns:
        Rows ``{layer, head, questions, texts, accuracy, low, high, reads}``: the share of texts whose log-odds are on
        the right side of 0 (chance: one half), as a mean over questions with its 95 % interval, and whether that is
        above chance. A probe at chance reads nothing, and its shifts mean nothing.
    """
    true, false = _odds(records)
    right = ((true > 0).astype(float) + (false <= 0)) / 2
    questions, question = np.unique([record["problem"] for record in records], return_inverse=True)
    found = mean_intervals(_by_question(right, question, len(questions)))
    names = part_names(right.shape[2] - 1)
    rows = []
    for column, (accuracy, low, high) in enumerate(found):
        layer, part = divmod(column, len(names))
        about = {"layer": layer, "head": names[part], "questions": len(questions), "texts": 2 * len(records)}
        reads = low is not None and low > 0.5 + 1e-9  # an interval's end at one half may be rounded up or down
        rows.append({**about, "accuracy": accuracy, "low": low, "high": high, "reads": reads})
    return rows


def score_rows(records: Mapping[str, Sequence[Record]]) -> list[TableRow]:
    """Returns the mean score of every source, and its difference from the base's on the same pairs.

    Means and 95 % intervals (`mean_intervals`) are over questions, of the mean over a question's pairs. Pairs for which
    a source's gate is open after one text and closed after the other are left out and counted as ``mixed``: the
    difference of an intervened state and one of the base shows the intervention rather than truth.

    Args:
        records: Records by source, with `BASE`; the same pairs in the same order.

    Returns:
        Rows ``{source, layer, head, position, questions, pairs, mixed, open, reads, score, low, high, delta,
        delta_low, delta_high}``, in log-odds. ``position`` counts statements from 0: heads have a row for all of them,
        the residual stream also one for each. ``open`` is the share of texts after which the source draws with
        interventions, ``reads`` as in `probe_rows`.
    """
    first = records[BASE]
    reads = {(row["layer"], row["head"]): row["reads"] for row in probe_rows(first)}
    questions, question = np.unique([record["problem"] for record in first], return_inverse=True)
    position = np.array([record["position"] for record in first])
    base = scores(first)
    rows = []
    for source, found in records.items():
        mine = scores(found)
        is_open = np.array([record["open"] for record in found])
        is_mixed = is_open[:, 0] != is_open[:, 1]
        for where in (ALL, *range(position.max() + 1)):
            here = np.full(len(first), True) if where == ALL else position == where
            at = here & ~is_mixed
            if not at.any():
                continue
            parts = mine.shape[2] if where == ALL else 1
            of_question = question[at]
            means, deltas = (
                mean_intervals(_by_question(values[at, :, :parts], of_question, len(questions)))
                for values in (mine, mine - base)
            )
            about = {"position": where, "questions": len(set(of_question)), "pairs": int(at.sum())}
            about |= {"mixed": int((here & is_mixed).sum()), "open": float(is_open[at].mean())}
            for column, (mean, delta) in enumerate(zip(means, deltas, strict=True)):
                layer, part = divmod(column, parts)
                head = part_names(parts - 1)[part]
                row = {"source": source, "layer": layer, "head": head, **about, "reads": reads[layer, head]}
                row |= zip(("score", "low", "high"), mean, strict=True)
                row |= zip(("delta", "delta_low", "delta_high"), delta, strict=True)
                rows.append(row)
    return rows


def _by_question(values: Array, question: Array, count: int) -> Array:
    """Returns means over pairs, ``(question, layer · part)``; NaN for a question without pairs."""
    flat = values.reshape(len(values), -1)
    sums, pairs = np.zeros((count, flat.shape[1])), np.bincount(question, minlength=count)[:, None]
    np.add.at(sums, question, flat)
    return np.divide(sums, pairs, out=np.full_like(sums, np.nan), where=pairs > 0)


def is_beyond_0(row: Mapping[str, Any]) -> bool:
    """Returns whether the interval of a row's difference excludes 0."""
    return row["delta_low"] is not None and (row["delta_low"] > 0 or row["delta_high"] < 0)
