"""Fits truth probes ``log-odds(true | h) = wᵀh + c`` and makes tables of their scores of true and false statements.

``s = (wᵀh + c)(true) − (wᵀh + c)(false)``, in log-odds, is a pair's score: the same statement twice, once with a wrong
number. It is above 0 if the probe rates the true one higher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from interventions.activations import Array
from reft_math.commands.resumable import Record
from reft_math.probes.number import Probe
from reft_math.probes.trajectory import mean_intervals

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
