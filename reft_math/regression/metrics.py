"""How near predictions ŷ come to targets y*, over n rows, and how sure that is.

Errors, common to all: `UserError` for fewer than 2 rows, lengths that differ, an array that is not flat, and a value
that is not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr

from reft_math.errors import UserError

Numbers = Sequence[float] | NDArray[np.floating]
Vector = NDArray[np.float64]

RESAMPLES = 2000


class Estimate(TypedDict):
    """A metric's value and its 95 % interval, lower end first; None where the metric is undefined."""

    value: float | None
    interval_95: list[float] | None


def rmse(predictions: Numbers, targets: Numbers) -> float:
    """``√((1/n) Σ_i (ŷ_i − y*_i)²)``, in the targets' unit."""
    return _rmse(*_pair(predictions, targets))


def pearson(predictions: Numbers, targets: Numbers) -> float | None:
    """``Σ (ŷ − mean ŷ)(y* − mean y*) / √(Σ (ŷ − mean ŷ)² · Σ (y* − mean y*)²)``; None where either does not vary."""
    return _pearson(*_pair(predictions, targets))


def spearman(predictions: Numbers, targets: Numbers) -> float | None:
    """`pearson` of the ranks, equals sharing their mean rank; None where either does not vary."""
    return _spearman(*_pair(predictions, targets))


def regression_metrics(predictions: Numbers, targets: Numbers, seed: int = 0) -> dict[str, Estimate]:
    """``rmse``, ``pearson`` and ``spearman``, each with the 2.5 and 97.5 percentiles over 2,000 resamples of the rows.

    A resample draws n rows with replacement, predictions and targets together; all metrics see the same resamples. One
    that leaves a correlation undefined counts as −1 for the lower end and as +1 for the upper, so that a correlation
    which rests on a few rows gets a wide interval, not a narrow one.

    Args:
        predictions: ŷ.
        targets: y*, in the same order.
        seed: Draws the resamples.

    Source: Efron, Bootstrap methods: another look at the jackknife, Annals of Statistics 7 (1979).
    """
    first, second = _pair(predictions, targets)
    rng = np.random.default_rng(seed)
    resampled: dict[str, list[float | None]] = {name: [] for name in METRICS}
    for _ in range(RESAMPLES):
        rows = rng.integers(len(first), size=len(first))
        for name, metric in METRICS.items():
            resampled[name].append(metric(first[rows], second[rows]))
    return {name: _estimate(metric(first, second), resampled[name]) for name, metric in METRICS.items()}


def rmse_difference(predictions: Numbers, others: Numbers, targets: Numbers, seed: int = 0) -> Estimate:
    """``RMSE(ŷ) − RMSE(ŷ′)`` of two predictors on the same rows, with the percentiles over 2,000 resamples of the rows.

    Rows are drawn with both predictions: what makes a row hard for both moves the difference little.
    """
    (first, wanted), (second, _) = _pair(predictions, targets), _pair(others, targets)
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(len(wanted), size=len(wanted)) for _ in range(RESAMPLES))
    resampled = [_rmse(first[rows], wanted[rows]) - _rmse(second[rows], wanted[rows]) for rows in drawn]
    low, high = np.percentile(resampled, [2.5, 97.5])
    return {"value": _rmse(first, wanted) - _rmse(second, wanted), "interval_95": [float(low), float(high)]}


def _rmse(predictions: Vector, targets: Vector) -> float:
    return float(np.sqrt(np.mean((predictions - targets) ** 2)))


def _pearson(predictions: Vector, targets: Vector) -> float | None:
    if not (_varies(predictions) and _varies(targets)):
        return None
    return float(pearsonr(predictions, targets).statistic)


def _spearman(predictions: Vector, targets: Vector) -> float | None:
    if not (_varies(predictions) and _varies(targets)):
        return None
    return float(spearmanr(predictions, targets).statistic)


METRICS: dict[str, Callable[[Vector, Vector], float | None]] = {
    "rmse": _rmse,
    "pearson": _pearson,
    "spearman": _spearman,
}


def _varies(values: Vector) -> bool:
    """Whether a vector varies by more than the rounding of its own mean (below that, scipy warns)."""
    mean = float(values.mean())
    return float(np.ptp(values)) > 0 and float(np.linalg.norm(values - mean)) >= 1e-13 * abs(mean)


def _estimate(value: float | None, resampled: Sequence[float | None]) -> Estimate:
    if value is None:
        return {"value": None, "interval_95": None}
    low = np.percentile([-1.0 if other is None else other for other in resampled], 2.5)
    high = np.percentile([1.0 if other is None else other for other in resampled], 97.5)
    return {"value": value, "interval_95": [float(low), float(high)]}


def _pair(predictions: Numbers, targets: Numbers) -> tuple[Vector, Vector]:
    """Both as float64 vectors of one length."""
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
