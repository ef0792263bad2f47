"""Truth probes ``log-odds(true | h) = wᵀh + c``: fitting them, and the tables of what they say of true and false
statements.

``s = (wᵀh + c)(true) − (wᵀh + c)(false)``, in log-odds, is a pair's score: the same statement twice, once with a wrong
number. It is above 0 where the hidden state of the true one looks the truer.
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
    """``min_{w,c} Σ log(1 + exp(−y(wᵀz + c))) + λ‖w‖²/2``, y = ±1, z the standardised h; returned for h itself.

    ``λ`` is chosen among five by the log loss on questions left out, in three folds.

    Args:
        hidden: ``h: (text, width)``.
        is_true: ``(text,)`` boolean.
        questions: Which question each text is of, ``(text,)``; at least three.
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
    """What is probed in a layer, in the order of its columns: the residual stream, and the heads by number."""
    return [RESIDUAL, *map(str, range(heads))]


def _odds(records: Sequence[Record]) -> tuple[Array, Array]:
    """Log-odds of true texts, and of false ones, ``(pair, layer, part)``."""
    true, false = (np.array([record[kind] for record in records]) for kind in ("true", "false"))
    return true, false


def scores(records: Sequence[Record]) -> Array:
    """``s: (pair, layer, part)`` from records with ``true`` and ``false``, log-odds ``(layer, part)``."""
    true, false = _odds(records)
    return true - false


def probe_rows(records: Sequence[Record]) -> list[TableRow]:
    """How well the base's probes tell true from false in questions held out.

    Args:
        records: The base's, of these questions.

    Returns:
        Rows ``{layer, head, questions, texts, accuracy, low, high, reads}``: the share of texts whose log-odds are on
        the right side of 0 (chance: one half), as a mean over questions with its 95 % interval, and whether that is
        above chance. A probe that is not reads nothing, and neither does what moves it.
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
        reads = low is not None and low > 0.5 + 1e-9  # an end at one half itself is rounded either way
        rows.append({**about, "accuracy": accuracy, "low": low, "high": high, "reads": reads})
    return rows


def score_rows(records: Mapping[str, Sequence[Record]]) -> list[TableRow]:
    """Mean score of every source, and its difference from the base's on the same pairs.

    Means are over questions, of the mean over a question's pairs; so are the 95 % intervals, by `mean_intervals`. Pairs
    after one text of which a source's gate is open and after the other closed are left out for it, ``mixed`` many: the
    difference of an intervened state and one of the base says more of the intervention than of the truth.

    Args:
        records: By source, `BASE` among them; the same pairs in the same order.

    Returns:
        Rows ``{source, layer, head, position, questions, pairs, mixed, open, reads, score, low, high, delta,
        delta_low, delta_high}``, in log-odds. ``position`` counts statements from 0: every head at all positions, the
        residual stream at each one too. ``open`` is the share of texts after which the source draws with
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
    """Means over pairs, ``(question, layer · part)``; NaN where a question has none here."""
    flat = values.reshape(len(values), -1)
    sums, pairs = np.zeros((count, flat.shape[1])), np.bincount(question, minlength=count)[:, None]
    np.add.at(sums, question, flat)
    return np.divide(sums, pairs, out=np.full_like(sums, np.nan), where=pairs > 0)


def is_beyond_0(row: Mapping[str, Any]) -> bool:
    """Whether the interval of a row's difference leaves out 0."""
    return row["delta_low"] is not None and (row["delta_low"] > 0 or row["delta_high"] < 0)
