from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, r2_score

from interventions.activations import Array
from reft_math.probes.number import (
    TARGETS,
    breaking_interval,
    breaking_point,
    directions,
    fit_probes,
    held_out,
    is_beyond,
    ratio_interval,
    reading_error,
    unit,
)

WIDTH = 24
RNG = np.random.default_rng(1)
PLANTED = unit(RNG.standard_normal(WIDTH))
NUMBERS = RNG.integers(1, 200, size=2000).astype(float)
PROBLEMS = [f"problem-{row // 5}" for row in range(len(NUMBERS))]
# The number along one direction, noise along all, and a mean far from zero.
HIDDEN = 7 + 0.05 * NUMBERS[:, None] * PLANTED + RNG.standard_normal((len(NUMBERS), WIDTH))


def cosine(first: Array, second: Array) -> float:
    return float(unit(first) @ unit(second))


# --- fitting and reading ----------------------------------------------------------------------------------------------


def test_a_planted_direction_is_recovered() -> None:
    is_held_out = held_out(PROBLEMS, seed=0)
    probe = fit_probes(HIDDEN[~is_held_out], {"identity": NUMBERS[~is_held_out]})["identity"]
    assert cosine(probe.weight, PLANTED) >= 0.99
    problems = np.array(PROBLEMS)[is_held_out]
    assert reading_error(probe.read(HIDDEN[is_held_out]), NUMBERS[is_held_out], problems)["r2"] > 0.85


def test_shuffled_labels_are_not_read() -> None:
    shuffled = np.random.default_rng(2).permutation(NUMBERS)
    is_held_out = held_out(PROBLEMS, seed=0)
    for name, target in TARGETS.items():
        labels = target(shuffled)
        probe = fit_probes(HIDDEN[~is_held_out], {name: labels[~is_held_out]})[name]
        error = reading_error(probe.read(HIDDEN[is_held_out]), labels[is_held_out], np.array(PROBLEMS)[is_held_out])
        assert error["r2"] < 0.02, name


def test_a_probe_is_the_ridge_solution_of_its_penalty() -> None:
    targets = {name: target(NUMBERS) for name, target in TARGETS.items()}
    probes = fit_probes(HIDDEN, targets)
    centred = HIDDEN - HIDDEN.mean(axis=0)
    for name, probe in probes.items():
        y = targets[name]
        expected = np.linalg.solve(centred.T @ centred + probe.penalty * np.eye(WIDTH), centred.T @ (y - y.mean()))
        np.testing.assert_allclose(probe.weight, expected, rtol=1e-8)
        np.testing.assert_allclose(probe.read(HIDDEN).mean(), y.mean())


def test_a_probe_does_not_depend_on_the_scale_of_its_layer() -> None:
    small, large = (fit_probes(scale * HIDDEN, {"identity": NUMBERS})["identity"] for scale in (1e-3, 1e3))
    np.testing.assert_allclose(small.read(1e-3 * HIDDEN), large.read(1e3 * HIDDEN), rtol=1e-6)


def test_no_problem_is_on_both_sides_of_the_split() -> None:
    is_held_out = held_out(PROBLEMS, seed=3)
    held, fitted = (set(np.array(PROBLEMS)[side]) for side in (is_held_out, ~is_held_out))
    assert held & fitted == set()
    assert held | fitted == set(PROBLEMS)
    assert 0.2 < is_held_out.mean() < 0.3
    assert (is_held_out == held_out(PROBLEMS, seed=3)).all()
    assert (is_held_out != held_out(PROBLEMS, seed=4)).any()


def test_reading_errors_are_the_usual_ones_with_intervals_around_them() -> None:
    read = NUMBERS + 20 * np.random.default_rng(4).standard_normal(len(NUMBERS))
    error = reading_error(read, NUMBERS, PROBLEMS)
    assert error["numbers"] == 2000
    assert error["problems"] == 400
    assert error["r2"] == pytest.approx(r2_score(NUMBERS, read))
    assert error["error"] == pytest.approx(mean_absolute_error(NUMBERS, read))
    assert error["r2_low"] < error["r2"] < error["r2_high"] < error["r2_low"] + 0.05
    assert error["error_low"] < error["error"] < error["error_high"]


def test_numbers_of_one_problem_make_no_interval_narrower() -> None:
    read = NUMBERS + 20 * np.random.default_rng(4).standard_normal(len(NUMBERS))
    once = reading_error(read[:100], NUMBERS[:100], [str(row) for row in range(100)])
    copied = reading_error(np.tile(read[:100], 9), np.tile(NUMBERS[:100], 9), [str(row) for row in range(100)] * 9)
    assert copied["error_high"] - copied["error_low"] == pytest.approx(once["error_high"] - once["error_low"], rel=0.2)


def test_equal_numbers_have_no_r2() -> None:
    error = reading_error(np.array([1.0, 2.0, 4.0]), np.full(3, 2.0), ["a", "b", "c"])
    assert (error["r2"], error["error"]) == (None, 1.0)


# --- directions -------------------------------------------------------------------------------------------------------


@pytest.fixture
def weights() -> Array:
    """Probes of four layers, neighbours alike."""
    rows = np.random.default_rng(5).standard_normal((4, WIDTH))
    return np.stack([3.0 * rows[0], rows[1] + rows[0], 0.5 * rows[2] + rows[1], rows[3]])


def test_a_push_along_a_probe_shifts_what_it_reads_by_alpha_times_its_norm(weights: Array) -> None:
    pushed = directions(weights, "probe", np.random.default_rng(0))
    hidden = np.random.default_rng(6).standard_normal(WIDTH)
    for layer, weight in enumerate(weights):
        shift = weight @ (hidden + 2.5 * pushed[layer]) - weight @ hidden
        assert shift == pytest.approx(2.5 * np.linalg.norm(weight))


def test_random_directions_keep_the_angles_between_layers(weights: Array) -> None:
    turned = directions(weights, "random", np.random.default_rng(0))
    np.testing.assert_allclose(turned @ turned.T, unit(weights) @ unit(weights).T, atol=1e-12)
    assert np.abs((turned * unit(weights)).sum(axis=1)).max() < 0.9
    again = directions(weights, "random", np.random.default_rng(1))
    assert np.abs(again - turned).max() > 0.1


def test_random_directions_lean_nowhere(weights: Array) -> None:
    rng = np.random.default_rng(7)
    drawn = np.stack([directions(weights, "random", rng)[0] for _ in range(2000)])
    assert np.abs(drawn.mean(axis=0)).max() < 0.03
    np.testing.assert_allclose(drawn.T @ drawn / len(drawn), np.eye(WIDTH) / WIDTH, atol=0.01)


def test_orthogonal_directions_move_no_layers_reading(weights: Array) -> None:
    drawn = directions(weights, "orthogonal", np.random.default_rng(0))
    np.testing.assert_allclose(drawn @ weights.T, 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1)


@pytest.mark.parametrize("kind", ["probe", "random"])
def test_a_probe_of_zero_has_no_direction(kind: str) -> None:
    assert not directions(np.zeros((3, WIDTH)), kind, np.random.default_rng(0)).any()  # type: ignore[arg-type]


# --- thresholds and projections ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "unpushed", "point"),
    [
        ([0, 5, 100], 0, 0.2),
        ([0, 10, 100], 0, 0.15),  # half-way from 0 to 10
        ([20, 30, 40], 0, 0.025),  # a quarter of the way from α = 0
        ([3, 3, 13], 3, 0.3),
        ([0, 4, 4], 0, None),
        ([0, 0, 8], 4, None),
        ([0, 9, 14], 4, 0.2),
        ([6, 0, 0], 0, 0.1 * 5 / 6),  # the first crossing counts
    ],
)
def test_sums_break_where_5_in_1000_more_are_wrong(wrong: list[int], unpushed: int, point: float | None) -> None:
    found = breaking_point(np.array([0.1, 0.2, 0.4]), np.array(wrong), unpushed, 1000)
    assert found == (None if point is None else pytest.approx(point))


def test_the_breaking_points_interval_holds_it() -> None:
    alphas = np.linspace(0.1, 1, 10)
    strength = np.random.default_rng(8).uniform(0.3, 30, size=1000)  # each sum breaks at a strength of its own
    is_wrong = alphas[:, None] > strength
    point = breaking_point(alphas, is_wrong.sum(axis=1), 0, 1000)
    low, high = breaking_interval(alphas, is_wrong, np.zeros(1000, dtype=bool))
    assert point is not None
    assert low is not None
    assert high is not None
    assert 0.3 < low < point < high < 0.8
    assert breaking_interval(alphas, np.zeros_like(is_wrong), np.zeros(1000, dtype=bool)) == (None, None)
    few = np.zeros_like(is_wrong)
    few[-1, :5] = True  # enough here, too few in about half of the resamples
    assert breaking_interval(alphas, few, np.zeros(1000, dtype=bool))[1] is None


def test_beyond_is_by_the_threshold_of_the_own_sign() -> None:
    projections = np.array([[-0.3, -0.1], [0.1, 0.3]])
    assert is_beyond(projections, 0.2, 0.05).tolist() == [[True, False], [True, True]]
    assert is_beyond(projections, None, 0.2).tolist() == [[False, False], [False, True]]
    assert not is_beyond(projections, None, None).any()


def test_a_ratios_interval_is_over_pairs() -> None:
    wholes = np.full(100, 10)
    parts = np.where(np.arange(100) < 20, 10, 0)  # 200 of 1,000, all of them in a fifth of the solutions
    low, high = ratio_interval(parts, wholes)
    assert low == pytest.approx(0.2 - 1.96 * 0.04, abs=0.015)
    assert high == pytest.approx(0.2 + 1.96 * 0.04, abs=0.015)
