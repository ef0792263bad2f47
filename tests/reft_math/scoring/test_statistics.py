from __future__ import annotations

from itertools import product
from math import comb, sqrt
from statistics import NormalDist

import numpy as np
import pytest

from reft_math.scoring.statistics import (
    McNemar,
    bootstrap_interval,
    crossed_interval,
    mcnemar,
    mean_interval,
    times_drawn,
    wilson_interval,
)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
@pytest.mark.parametrize(("correct", "total"), [(0, 1), (1, 1), (0, 50), (7, 50), (50, 50), (981, 1319)])
def test_wilson_interval_agrees_with_its_formula(correct: int, total: int, confidence: float) -> None:
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = correct / total
    half = z * sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    centre = p + z**2 / (2 * total)
    expected = ((centre - half) / (1 + z**2 / total), (centre + half) / (1 + z**2 / total))
    assert wilson_interval(correct, total, confidence) == pytest.approx(expected, abs=1e-12)


def test_wilson_interval_of_newcombe() -> None:
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81 of 263 and 15 of 148."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


@pytest.mark.parametrize(
    ("correct", "total", "confidence"),
    [(0, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0), (1, 5, 0.0)],
)
def test_impossible_counts_are_refused(correct: int, total: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="got"):
        wilson_interval(correct, total, confidence)


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (5, 5), (2, 9), (9, 2), (0, 12), (30, 51)])
def test_mcnemar_agrees_with_binomial_sums(only_first: int, only_second: int) -> None:
    first = [True] * only_first + [False] * only_second + [True] * 4 + [False] * 3
    second = [False] * only_first + [True] * only_second + [True] * 4 + [False] * 3
    discordant = only_first + only_second
    tail = sum(comb(discordant, k) for k in range(min(only_first, only_second) + 1)) / 2**discordant
    result = mcnemar(first, second)
    assert (result.only_first, result.only_second) == (only_first, only_second)
    assert result.p_value == pytest.approx(min(1.0, 2 * tail), rel=1e-12)


def test_mcnemar_needs_pairs() -> None:
    assert mcnemar([], []) == McNemar(0, 0, 1.0)
    with pytest.raises(ValueError, match="got 2 and 1"):
        mcnemar([True, False], [True])


def test_crossed_interval_draws_seeds_and_problems() -> None:
    """Against draws made one by one; a spread between seeds widens it far beyond that of the problems alone."""
    rng = np.random.default_rng(3)
    values = (rng.random((4, 60)) < np.array([[0.2], [0.4], [0.6], [0.8]])).astype(float)
    drawn = [values[np.ix_(rng.integers(4, size=4), rng.integers(60, size=60))].mean() for _ in range(20_000)]
    found = crossed_interval(values)
    assert found == crossed_interval(values)
    assert found == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))), abs=0.015)
    alone = crossed_interval(values.mean(axis=0)[None])
    assert alone is not None
    assert found is not None
    assert found[1] - found[0] > 2 * (alone[1] - alone[0])


def test_crossed_interval_of_one_seed_is_the_bootstrap_over_problems() -> None:
    values = np.random.default_rng(4).random((1, 50))
    drawn = np.random.default_rng(5).choice(values[0], size=(20_000, 50)).mean(axis=1)
    assert crossed_interval(values) == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))), abs=0.01)


def test_crossed_interval_of_equal_values_has_no_width_and_is_none() -> None:
    assert crossed_interval(np.zeros((3, 10))) is None


@pytest.mark.parametrize("values", [(4, 8, 20, 6), (1, -2, 2, 2, 9)])
def test_the_interval_of_a_mean_is_that_of_all_ways_to_draw_the_values_again(values: tuple[float, ...]) -> None:
    means = np.mean(list(product(values, repeat=len(values))), axis=1)
    assert mean_interval(values) == pytest.approx(np.quantile(means, (0.025, 0.975)))


def test_the_interval_of_equal_values_has_no_width_and_is_none() -> None:
    assert mean_interval([7.0, 7.0]) is None


def test_a_bootstrap_is_a_function_of_its_seed_whatever_fits_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=50)

    def means(rows: np.ndarray) -> np.ndarray:
        return np.stack([values[rows].mean(axis=1), times_drawn(rows) @ values / 50])

    low, high = bootstrap_interval(means, 50)
    assert low == pytest.approx(np.full(2, low[0]))
    assert (high - low) / 2 == pytest.approx(np.full(2, 1.96 * values.std() / np.sqrt(50)), rel=0.1)
    assert (bootstrap_interval(means, 50, seed=1)[0] != low).all()
    monkeypatch.setattr("reft_math.scoring.statistics._BATCH", 1000)
    assert np.array_equal(bootstrap_interval(means, 50), (low, high))


def test_one_row_is_its_own_interval_and_resamples_without_a_value_are_left_out() -> None:
    assert np.array_equal(bootstrap_interval(lambda rows: np.array([7.0, 3.0])[:, None] + rows[:, 0], 1), [[7, 3]] * 2)
    assert bootstrap_interval(lambda rows: np.where(rows[:, 0] > 0, 5.0, np.nan), 4) == (5, 5)
    assert bootstrap_interval(lambda rows: np.where(rows[:, 0] > 0, np.inf, 0.0), 4) == (0, np.inf)
