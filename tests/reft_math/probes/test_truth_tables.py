"""Truth probes on made hidden states, and tables of made records."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from interventions.activations import Array
from reft_math.probes.trajectory import mean_intervals
from reft_math.probes.truth import fit_truth_probe, is_beyond_0, probe_rows, score_rows
from reft_math.scoring.statistics import wilson_interval

QUESTIONS, STATEMENTS, WIDTH = 400, 5, 12


def planted(distance: float) -> tuple[Array, Array, Array, Array]:
    """Unit noise about ``±distance·u/2``: hidden states, which are true, of which question, and ``u``."""
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(WIDTH)
    direction /= np.linalg.norm(direction)
    is_true = np.tile([True, False], QUESTIONS * STATEMENTS)
    noise = rng.standard_normal((len(is_true), WIDTH))
    hidden = 5 + noise + np.where(is_true, 0.5, -0.5)[:, None] * distance * direction
    return hidden, is_true, np.repeat(np.arange(QUESTIONS), 2 * STATEMENTS), direction


def test_a_planted_direction_is_recovered_and_generalises() -> None:
    """Of two Gaussians of unit noise at a distance of 3 the best probe is along u, right with probability Φ(1.5)."""
    hidden, is_true, questions, direction = planted(3.0)
    train = questions < 300
    probe = fit_truth_probe(hidden[train], is_true[train], questions[train])
    assert probe.weight @ direction / np.linalg.norm(probe.weight) > 0.99
    assert np.linalg.norm(probe.weight) == pytest.approx(3.0, rel=0.1), "log-odds are 3·uᵀh and a constant"
    accuracy = ((probe.read(hidden[~train]) > 0) == is_true[~train]).mean()
    assert accuracy == pytest.approx(0.933, abs=0.02)


def test_labels_dealt_at_random_are_read_at_chance() -> None:
    hidden, is_true, questions, _ = planted(3.0)
    swapped = np.random.default_rng(1).random(QUESTIONS * STATEMENTS) < 0.5
    labels = is_true ^ np.repeat(swapped, 2)
    train = questions < 300
    probe = fit_truth_probe(hidden[train], labels[train], questions[train])
    right = int(((probe.read(hidden[~train]) > 0) == labels[~train]).sum())
    low, high = wilson_interval(right, int((~train).sum()))
    assert low < 0.5 < high


def test_the_probe_is_where_its_formula_has_its_minimum() -> None:
    hidden, is_true, questions, _ = planted(1.0)
    hidden *= np.linspace(0.1, 10, WIDTH)
    probe = fit_truth_probe(hidden, is_true, questions)
    z, y = (hidden - hidden.mean(axis=0)) / hidden.std(axis=0), np.where(is_true, 1, -1)
    pull = y / (1 + np.exp(y * probe.read(hidden)))
    np.testing.assert_allclose(probe.penalty * probe.weight * hidden.std(axis=0), pull @ z, atol=0.5)
    assert np.abs(y @ z).min() > 20, "at the start the slope was of another size"
    assert abs(pull.sum()) < 0.5


def record(problem: str, position: int, true: list[list[float]], false: list[list[float]], *is_open: bool) -> Any:
    return {"problem": problem, "position": position, "true": true, "false": false, "open": is_open or (False, False)}


BASE = [
    record("a", 0, [[1.0, 2.0]], [[-1.0, 0.0]]),
    record("a", 1, [[3.0, 0.0]], [[1.0, -2.0]]),
    record("b", 0, [[-1.0, 1.0]], [[-2.0, 1.0]]),
    record("c", 0, [[5.0, 1.0]], [[-5.0, 1.0]]),
]
OTHER = [
    record("a", 0, [[2.0, 2.0]], [[-1.0, 0.0]], True, True),
    record("a", 1, [[3.0, 0.0]], [[1.0, -3.0]]),
    record("b", 0, [[-1.0, 1.0]], [[-7.0, 1.0]], True, True),
    record("c", 0, [[90.0, 1.0]], [[-5.0, 1.0]], True, False),
]


def test_accuracy_is_the_mean_over_questions_of_texts_on_their_side_of_0() -> None:
    residual, head = probe_rows(BASE)
    right = [(1 + 0.5) / 2, 0.5, 1.0]  # of a's two pairs, of b's and of c's one
    ((mean, low, high),) = mean_intervals(np.array(right)[:, None])
    about = {"layer": 0, "questions": 3, "texts": 8}
    expected = {**about, "head": "residual", "accuracy": mean, "low": low, "high": high, "reads": False}
    assert residual == expected
    assert (head["head"], head["accuracy"]) == ("0", pytest.approx((0.75 + 0.5 + 0.5) / 3)), "0 counts as false"


def test_a_probe_reads_where_the_interval_of_its_accuracy_is_above_chance() -> None:
    rng = np.random.default_rng(0)
    odds = rng.standard_normal((40, 2, 2)) + np.array([[2.0, -2.0], [0.0, 0.0]]).T
    records = [record(str(index), 0, [[*true]], [[*false]]) for index, (true, false) in enumerate(odds)]
    assert [row["reads"] for row in probe_rows(records)] == [True, False]
    assert [row["reads"] for row in score_rows({"base": records})] == [True, False, True]


def test_scores_are_means_over_questions_and_differences_those_of_the_same_pairs() -> None:
    """The pair with the gate open after one of its texts only is left out for that source."""
    rows = score_rows({"base": BASE, "other": OTHER})
    found = {(row["source"], row["head"], row["position"]): row for row in rows}
    assert len(found) == len(rows) == 2 * (2 + 2)
    row = found["other", "residual", "all"]
    assert (row["questions"], row["pairs"], row["mixed"], row["open"]) == (2, 3, 1, pytest.approx(2 / 3))
    assert row["score"] == pytest.approx(((3 + 2) / 2 + 6) / 2)
    assert row["delta"] == pytest.approx(((1 + 0) / 2 + 5) / 2)
    assert [(row["delta"], row["delta_low"], row["delta_high"])] == mean_intervals(np.array([[0.5], [5.0]]))
    assert found["other", "0", "all"]["delta"] == pytest.approx(0.25)
    later = found["other", "residual", 1]
    assert (later["questions"], later["score"], later["delta"], later["delta_low"]) == (1, 2.0, 0.0, None)
    assert (found["base", "residual", "all"]["pairs"], found["base", "residual", "all"]["mixed"]) == (4, 0)
    assert all(row["delta"] == 0 for row in rows if row["source"] == "base")


@pytest.mark.parametrize(("low", "high", "beyond"), [(0.1, 2, True), (-2, -0.1, True), (-1, 1, False), (0, 0, False)])
def test_an_interval_is_beyond_0_or_not(low: float, high: float, beyond: bool) -> None:
    assert is_beyond_0({"delta_low": low, "delta_high": high}) == beyond
    assert not is_beyond_0({"delta_low": None, "delta_high": None})
