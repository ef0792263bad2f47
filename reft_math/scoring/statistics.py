"""Computes intervals of scores, and tests whether two scores on the same problems differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, bootstrap

RESAMPLES = 2000
_BATCH = 10**7  # drawn rows in memory at once


@dataclass(frozen=True)
class McNemar:
    """The paired comparison of two systems.

    Attributes:
        only_first: Problems that only the first solved.
        only_second: Problems that only the second solved.
        p_value: Exact two-sided probability of a split at least this uneven if both were equally likely.
    """

    only_first: int
    only_second: int
    p_value: float


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns ``(p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)`` with p = correct/total, n = total.

    Args:
        correct: Number of problems solved.
        total: Number of problems tried.
        confidence: Coverage probability of the interval, between 0 and 1.

    Returns:
        Lower and upper end, as fractions.

    Raises:
        ValueError: If the counts or the confidence are impossible.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"an interval needs 0 <= correct <= total and total >= 1, got {correct} of {total}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    interval = binomtest(correct, total).proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_interval(
    statistic: Callable[[npt.NDArray[Any]], npt.NDArray[Any]], rows: int, seed: int = 0
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Returns the 95 % interval of a statistic of rows: percentiles over 2,000 resamples, without NaN results.

    A single row gives the point itself.

    Args:
        statistic: Maps indices of drawn rows, ``(resample, row)``, to values ``(…, resample)``.
        rows: Number of rows.
        seed: Seed of the resamples.

    Source: Efron, Bootstrap methods: another look at the jackknife, Annals of Statistics 7 (1979).
    """
    with np.errstate(invalid="ignore"):  # values may be infinite, and scipy takes their spread
        if rows == 1:
            drawn = statistic(np.zeros((1, 1), dtype=np.intp))
        else:
            drawn = bootstrap(
                (np.arange(rows),),
                lambda indices, axis: statistic(indices),
                n_resamples=RESAMPLES,
                batch=max(1, _BATCH // rows),
                vectorized=True,
                method="percentile",
                rng=np.random.default_rng(seed),
            ).bootstrap_distribution
        # An order statistic: interpolation between infinities would fail.
        low, high = np.nanquantile(drawn, (0.025, 0.975), axis=-1, method="inverted_cdf")
    return low, high


def times_drawn(indices: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Counts each row in each resample, ``(resample, row)``: sums over drawn rows are products with it."""
    resamples, rows = indices.shape
    places = indices + rows * np.arange(resamples)[:, None]
    return np.bincount(places.ravel(), minlength=indices.size).reshape(indices.shape)


def mean_interval(values: npt.ArrayLike) -> tuple[float, float] | None:
    """Returns the 95 % interval of a mean: percentiles over resampled values. None if all values are equal.

    For paired differences it is the interval of their mean, without the variation that the pairs share.
    """
    sample = np.asarray(values, dtype=np.float64)
    if (sample == sample[0]).all():
        return None
    low, high = bootstrap_interval(lambda rows: sample[rows].mean(axis=1), len(sample))
    return float(low), float(high)


def crossed_interval(values: npt.ArrayLike) -> tuple[float, float] | None:
    """Returns the 95 % interval of the mean of ``values: (seed, problem)``, resampling seeds and problems.

    Seeds are drawn with replacement, and problems, the same for all seeds; a single seed is kept, and the interval then
    covers other problems only. None if every draw gives the same mean.
    """
    table = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(0)
    seeds, problems = (rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n for n in table.shape)
    means = np.einsum("rs,sp,rp->r", seeds, table, problems, optimize=True)
    low, high = np.quantile(means, (0.025, 0.975))
    return (float(low), float(high)) if high > low else None


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Returns ``p = min(1, 2 P[X <= min(b, c)])``, X ~ Binomial(b + c, 1/2), b and c problems that only one solved.

    Args:
        first: Whether the first system solved each problem.
        second: The same for the second, on the same problems in the same order.

    Raises:
        ValueError: If the two differ in length.

    Source: McNemar, Note on the sampling error of the difference between correlated proportions, Psychometrika 12
        (1947), in its exact form.
    """
    if len(first) != len(second):
        raise ValueError(f"a paired test needs the same problems twice, got {len(first)} and {len(second)} outcomes")
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    discordant = only_first + only_second
    p_value = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return McNemar(only_first, only_second, p_value)
