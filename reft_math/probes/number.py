"""Number probes ``ŷ = wᵀh + c``: fitting, reading, directions for pushes, thresholds, projections.

Pure functions of arrays. ``h: (row, width)`` are hidden states at tokens that end a number, ``y: (row,)`` the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupShuffleSplit

from interventions.activations import Array
from reft_math.scoring.statistics import bootstrap_interval, times_drawn

Direction = Literal["probe", "random", "orthogonal"]

TARGETS: dict[str, Callable[[Array], Array]] = {"identity": np.asarray, "log2": np.log2}

_HELD_OUT_SHARE = 0.25
# λ as a share of rows × variance, so that it means the same at any scale of a layer.
_PENALTIES = np.logspace(-7, 0, 8)
_BREAKING = 0.005


@dataclass(frozen=True)
class Probe:
    """``ŷ = wᵀh + c``

    Attributes:
        weight: ``w: (width,)``.
        intercept: ``c``.
        penalty: ``λ`` used in fitting.
    """

    weight: Array
    intercept: float
    penalty: float

    def read(self, hidden: Array) -> Array:
        """Reads ``(row,)`` numbers from ``hidden: (row, width)``."""
        return np.asarray(hidden, dtype=np.float64) @ self.weight + self.intercept


def fit_probes(hidden: Array, targets: Mapping[str, Array]) -> dict[str, Probe]:
    """Solves ``min_{w,c} Σ (wᵀh + c − y)² + λ‖w‖²`` for every target, in float64.

    ``λ`` is chosen among eight values by leave-one-out error.

    Args:
        hidden: ``(row, width)``.
        targets: ``y: (row,)`` by name.
    """
    hidden = np.asarray(hidden, dtype=np.float64)
    variance = hidden.var(axis=0).mean()
    penalties = _PENALTIES * len(hidden) * (variance or 1.0)
    ridge = RidgeCV(penalties, alpha_per_target=True).fit(hidden, np.stack(list(targets.values()), axis=1))
    # For a single target scikit-learn drops the axis.
    found = np.atleast_2d(ridge.coef_), np.atleast_1d(ridge.intercept_), np.atleast_1d(ridge.alpha_)
    return {
        name: Probe(weight, float(intercept), float(penalty))
        for name, weight, intercept, penalty in zip(targets, *found, strict=True)
    }


def held_out(problems: Sequence[str] | Array, seed: int) -> Array:
    """Returns a mask that is true at all rows of a quarter of the problems.

    Args:
        problems: Each row's problem, ``(row,)``.
        seed: Seed of the quarter.
    """
    split = GroupShuffleSplit(n_splits=1, test_size=_HELD_OUT_SHARE, random_state=seed)
    _, indices = next(split.split(problems, groups=problems))
    is_held_out = np.zeros(len(problems), dtype=bool)
    is_held_out[indices] = True
    return is_held_out


def reading_error(read: Array, truth: Array, problems: Sequence[str] | Array) -> dict[str, Any]:
    """Returns ``R² = 1 − Σ(y − ŷ)² / Σ(y − ȳ)²`` and the mean of ``|y − ŷ|``, with 95 % intervals.

    The intervals are percentiles over resampled problems, not rows, since numbers of one problem are related.

    Args:
        read: ``ŷ: (row,)``.
        truth: ``y: (row,)``; ``ȳ`` is its own mean.
        problems: Each row's problem.

    Returns:
        ``numbers``, ``problems``, ``r2``, ``r2_low``, ``r2_high``, ``error``, ``error_low``, ``error_high``; R² is None
        if all ``y`` are equal.
    """
    names, problem = np.unique(problems, return_inverse=True)
    missed, centred = np.abs(truth - read), truth - truth.mean()
    columns = (missed**2, centred**2, centred, np.ones_like(missed))
    sums = np.stack([np.bincount(problem, column) for column in columns])
    low, high = ratio_interval(np.bincount(problem, missed), sums[-1])
    found: dict[str, Any] = {"numbers": len(truth), "problems": len(names)}
    found |= {"r2": None, "r2_low": None, "r2_high": None}
    if np.ptp(truth) > 0:
        r2_low, r2_high = bootstrap_interval(lambda rows: _r2(sums @ times_drawn(rows).T), len(names))
        found |= {"r2": float(_r2(sums.sum(axis=1))), "r2_low": float(r2_low), "r2_high": float(r2_high)}
    return {**found, "error": float(missed.mean()), "error_low": low, "error_high": high}


def _r2(sums: Array) -> Array:
    """Returns R² from the sums of ``(y − ŷ)²``, ``(y − m)²``, ``y − m`` and 1 for any m; NaN if all ``y`` are equal."""
    squared, total, centred, rows = sums
    spread = total - centred**2 / rows
    is_spread = spread > 1e-9 * np.max(spread)  # otherwise a resample drew only one number
    return np.asarray(1 - np.divide(squared, spread, out=np.full_like(spread, np.nan), where=is_spread))


def ratio_interval(parts: Array, wholes: Array) -> tuple[float, float]:
    """Returns the 95 % interval of ``Σ parts / Σ wholes``: percentiles over resampled pairs, e.g. one per problem."""
    low, high = bootstrap_interval(lambda rows: parts[rows].sum(axis=1) / wholes[rows].sum(axis=1), len(parts))
    return float(low), float(high)


def unit(vectors: Array) -> Array:
    """Returns ``v/‖v‖``, and 0 for 0, over the last axis."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0))


def directions(weights: Array, kind: Direction, rng: np.random.Generator) -> Array:
    """Returns ``w_l/‖w_l‖`` for each layer, or a control direction of the same length.

    A ``random`` draw turns all layers' probes by one random rotation: each layer's direction is uniform on the sphere,
    and the angles between layers, which decide how their pushes add up, stay those of the probes. An ``orthogonal``
    draw is a random one minus its part in the span of all layers' probes.

    Args:
        weights: ``w: (layer, width)``.
        kind: Kind of direction.
        rng: Source of the random rotation.

    Returns:
        ``(layer, width)``, rows of length 1; 0 where the probe is 0.
    """
    if kind == "probe":
        return unit(weights)
    width = weights.shape[1]
    rotation, triangle = np.linalg.qr(rng.standard_normal((width, width)))
    turned = unit(weights) @ (rotation * np.sign(np.diag(triangle)))  # uniform once the signs are fixed (Mezzadri)
    if kind == "random":
        return np.asarray(turned)
    span, sizes, _ = np.linalg.svd(weights.T, full_matrices=False)
    span = span[:, sizes > sizes.max() * 1e-10]
    return unit(turned - turned @ span @ span.T)


def breaking_point(alphas: Array, wrong: Array, wrong_unpushed: int, total: int) -> float | None:
    """Returns the first ``|α|`` at which 5 more in 1,000 sums are wrong, interpolated linearly; None if there is none.

    Args:
        alphas: ``|α|``, ascending from above 0.
        wrong: Number of wrong sums at each.
        wrong_unpushed: Number of wrong sums at 0.
        total: Number of sums.
    """
    before, more_before, needed = 0.0, 0.0, _BREAKING * total
    for alpha, count in zip(alphas, wrong, strict=True):
        more = float(count) - wrong_unpushed
        if more >= needed:
            return float(before + (alpha - before) * (needed - more_before) / (more - more_before))
        before, more_before = float(alpha), more
    return None


def breaking_interval(alphas: Array, is_wrong: Array, is_wrong_unpushed: Array) -> tuple[float | None, float | None]:
    """Returns the 95 % interval of `breaking_point` over resampled sums; None for an end beyond the last ``|α|``.

    Args:
        alphas: ``(alpha,)``.
        is_wrong: ``(alpha, sum)``.
        is_wrong_unpushed: ``(sum,)``.
    """
    total = len(is_wrong_unpushed)

    def points(rows: Array) -> Array:
        times = times_drawn(rows)
        counts = zip(times @ is_wrong.T, times @ is_wrong_unpushed, strict=True)
        found = (breaking_point(alphas, wrong, unpushed, total) for wrong, unpushed in counts)
        return np.array([math.inf if point is None else point for point in found])

    low, high = bootstrap_interval(points, total)
    return None if np.isinf(low) else float(low), None if np.isinf(high) else float(high)


def is_beyond(projections: Array, negative: float | None, positive: float | None) -> Array:
    """Returns whether each projection lies beyond the breaking point of its sign; false if there is no such point.

    Args:
        projections: Any shape, in the breaking points' units.
        negative, positive: Breaking points as ``|α|``.
    """
    below = projections < -(math.inf if negative is None else negative)
    above = projections > (math.inf if positive is None else positive)
    return np.asarray(below | above)
