"""Measures errors of predictions ŷ of targets y*, over n rows, with intervals.

All raise `UserError` for fewer than 2 rows, different lengths, an array that is not flat, and NaN or infinity.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, rankdata

from reft_math.errors import UserError
from reft_math.scoring.statistics import bootstrap_interval

Numbers = Sequence[float] | NDArray[np.floating]
Vector = NDArray[np.float64]


class Estimate(TypedDict):
    """A metric's value and its 95 % interval, lower end first; None where the metric is undefined."""

    value: float | None
    interval_95: list[float] | None


def rmse(predictions: Numbers, targets: Numbers) -> float:
    """Returns ``√((1/n) Σ_i (ŷ_i − y*_i)²)``, in the targets' unit."""
    return float(_rmse(*_pair(predictions, targets)))


def pearson(predictions: Numbers, targets: Numbers) -> float | None:
    """Returns ``Σ (ŷ − mean ŷ)(y* − mean y*) / √(Σ (ŷ − mean ŷ)² · Σ (y* − mean y*)²)``; None if one is constant."""
    return _value(_pearson(*_pair(predictions, targets)))


def spearman(predictions: Numbers, targets: Numbers) -> float | None:
    """Returns `pearson` of the ranks, with mean ranks for ties; None if one is constant."""
    return _value(_spearman(*_pair(predictions, targets)))


def regression_metrics(predictions: Numbers, targets: Numbers, seed: int = 0) -> dict[str, Estimate]:
    """Returns ``rmse``, ``pearson`` and ``spearman``, with 2.5 and 97.5 percentiles over 2,000 resamples of the rows.

    A resample draws n rows with replacement, predictions and targets together; all metrics use the same resamples. If a
    resample leaves a correlation undefined, it counts as −1 for the lower end and as +1 for the upper, so that a
    correlation that depends on a few rows gets a wide interval.

    Args:
        predictions: Predictions ŷ.
        targets: Targets y*, in the same order.
        seed: Seed of the resamples.
    """
    first, second = _pair(predictions, targets)
    return {name: _estimate(metric, first, second, seed) for name, metric in METRICS.items()}


def rmse_difference(predictions: Numbers, others: Numbers, targets: Numbers, seed: int = 0) -> Estimate:
    """Returns ``RMSE(ŷ) − RMSE(ŷ′)`` of two predictors on the same rows, with percentiles over 2,000 resamples.

    Rows are drawn with both predictions, so that rows that are hard for both change the difference little.
    """
    (first, wanted), (second, _) = _pair(predictions, targets), _pair(others, targets)

    def difference(rows: Any) -> Vector:
        return _rmse(first[rows], wanted[rows]) - _rmse(second[rows], wanted[rows])

    low, high = bootstrap_interval(difference, len(wanted), seed)
    return {"value": float(difference(slice(None))), "interval_95": [float(low), float(high)]}


# The metrics of rows along the last axis; NaN if undefined.


def _rmse(predictions: Vector, targets: Vector) -> Vector:
    return np.asarray(np.sqrt(np.mean((predictions - targets) ** 2, axis=-1)))


def _pearson(predictions: Vector, targets: Vector) -> Vector:
    varies = _varies(predictions) & _varies(targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about constant input, which `varies` leaves out
        return np.where(varies, pearsonr(predictions, targets, axis=-1).statistic, np.nan)


def _spearman(predictions: Vector, targets: Vector) -> Vector:
    varies = _varies(predictions) & _varies(targets)
    return np.where(varies, _pearson(rankdata(predictions, axis=-1), rankdata(targets, axis=-1)), np.nan)


METRICS: dict[str, Callable[[Vector, Vector], Vector]] = {"rmse": _rmse, "pearson": _pearson, "spearman": _spearman}


def _varies(values: Vector) -> NDArray[np.bool_]:
    """Returns whether rows vary by more than the rounding of their mean (below that, scipy warns)."""
    mean = values.mean(axis=-1, keepdims=True)
    spread = np.linalg.norm(values - mean, axis=-1)
    return np.asarray((np.ptp(values, axis=-1) > 0) & (spread >= 1e-13 * np.abs(mean[..., 0])))


def _estimate(metric: Callable[[Vector, Vector], Vector], first: Vector, second: Vector, seed: int) -> Estimate:
    value = _value(metric(first, second))
    if value is None:
        return {"value": None, "interval_95": None}

    def at_worst_and_best(rows: NDArray[np.intp]) -> Vector:
        drawn = metric(first[rows], second[rows])
        return np.stack([np.nan_to_num(drawn, nan=-1.0), np.nan_to_num(drawn, nan=1.0)])

    low, high = bootstrap_interval(at_worst_and_best, len(first), seed)
    return {"value": value, "interval_95": [float(low[0]), float(high[1])]}


def _value(metric: Vector) -> float | None:
    return None if np.isnan(metric) else float(metric)


def _pair(predictions: Numbers, targets: Numbers) -> tuple[Vector, Vector]:
    """Returns both as float64 vectors of one length."""
    first, second = _vector("prediction", predictions), _vector("target", targets)
    if len(first) != len(second):
        raise UserError(f"every prediction needs its target; got {len(first)} predictions and {len(second)} targets")
    if len(first) < 2:
        raise UserError(f"metrics with an interval need at least 2 rows; got {len(first)}")
    return first, second


def _vector(name: str, values: Numbers) -> Vector:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1:
        raise UserError(f"{name}s must be one number a row; got an array of shape {vector.shape}")
    wrong = np.flatnonzero(~np.isfinite(vector))
    if wrong.size:
        raise UserError(f"every {name} must be a finite number; row {wrong[0]}'s is {vector[wrong[0]]}")
    return vector
