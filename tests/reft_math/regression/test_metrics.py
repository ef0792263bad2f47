from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from reft_math.errors import UserError
from reft_math.regression.metrics import pearson, regression_metrics, rmse, rmse_difference, spearman


@pytest.fixture(autouse=True)
def _warnings_are_errors() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def normal_pairs(rows: int, correlation: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    covariance = [[1, correlation], [correlation, 1]]
    pairs = np.random.default_rng(seed).multivariate_normal([0, 0], covariance, size=rows)
    return pairs[:, 0], pairs[:, 1]


def test_values_worked_out_by_hand() -> None:
    predictions, targets = [1.0, 2.0, 4.0, 4.0], [1.0, 3.0, 2.0, 6.0]
    assert rmse(predictions, targets) == pytest.approx(math.sqrt((0 + 1 + 4 + 4) / 4))
    # deviations: (-1.75, -0.75, 1.25, 1.25) and (-2, 0, -1, 3)
    assert pearson(predictions, targets) == pytest.approx(6 / math.sqrt(6.75 * 14))
    # ranks: (1, 2, 3.5, 3.5) and (1, 3, 2, 4); deviations (-1.5, -0.5, 1, 1) and (-1.5, 0.5, -0.5, 1.5)
    assert spearman(predictions, targets) == pytest.approx(3 / math.sqrt(4.5 * 5))


def test_pearson_sees_lines_and_spearman_order() -> None:
    x = np.linspace(0, 3, 50)
    assert pearson(-2 * x + 7, x) == pytest.approx(-1)
    assert spearman(np.exp(5 * x), x) == pytest.approx(1)
    assert pearson(np.exp(5 * x), x) < 0.7


def test_each_metric_has_its_value_and_an_interval_around_it() -> None:
    predictions, targets = normal_pairs(300, 0.7, seed=0)
    metrics = regression_metrics(predictions, targets)
    assert {name: estimate["value"] for name, estimate in metrics.items()} == {
        "rmse": rmse(predictions, targets),
        "pearson": pearson(predictions, targets),
        "spearman": spearman(predictions, targets),
    }
    for estimate in metrics.values():
        low, high = estimate["interval_95"]
        assert low < estimate["value"] < high


def test_an_interval_is_percentiles_of_resamples_as_numpy_draws_them() -> None:
    errors = np.sin(np.arange(20.0))
    found = regression_metrics(errors, np.zeros(20), seed=3)["rmse"]
    rng = np.random.default_rng(3)
    drawn = [np.sqrt(np.mean(errors[rng.integers(20, size=20)] ** 2)) for _ in range(2000)]
    assert found["interval_95"] == pytest.approx(list(np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")))


def test_two_rows_are_enough_and_float32_does_not_overflow() -> None:
    assert rmse(np.full(2, 1e25, dtype=np.float32), np.zeros(2, dtype=np.float32)) == pytest.approx(1e25)


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_correlations_know_no_scale_and_no_origin(scale: float) -> None:
    x, y = np.array([-1.0, 0.0, 1.0]), np.array([2.0, 1.0, 4.0])
    for metric in (pearson, spearman):
        assert metric(scale * x, y) == pytest.approx(metric(x + 5, y))


def test_intervals_are_as_wide_as_theory_has_them() -> None:
    """RMSE of normal errors: ±1.96 σ/√(2n); Pearson: the Fisher transform's ±1.96/√(n − 3)."""
    predictions, targets = normal_pairs(800, 0.6, seed=1)
    metrics = regression_metrics(predictions, targets)
    low, high = metrics["rmse"]["interval_95"]
    assert high - low == pytest.approx(2 * 1.96 * metrics["rmse"]["value"] / math.sqrt(2 * 800), rel=0.15)
    centre, half = math.atanh(metrics["pearson"]["value"]), 1.96 / math.sqrt(800 - 3)
    expected = [math.tanh(centre - half), math.tanh(centre + half)]
    assert metrics["pearson"]["interval_95"] == pytest.approx(expected, abs=0.012)


def test_resampling_keeps_each_prediction_with_its_target() -> None:
    """Drawn apart, a perfect prediction would lose its correlation and gain an error."""
    values = np.random.default_rng(0).normal(size=40)
    metrics = regression_metrics(values, values)
    assert metrics["rmse"]["interval_95"] == [0, 0]
    assert metrics["pearson"]["interval_95"] == pytest.approx([1, 1])
    assert metrics["spearman"]["interval_95"] == pytest.approx([1, 1])


def test_the_interval_is_a_function_of_the_seed() -> None:
    pair = normal_pairs(30, 0.5, seed=2)
    assert regression_metrics(*pair) == regression_metrics(*pair, seed=0) != regression_metrics(*pair, seed=1)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e8 / 3])
def test_constant_predictions_have_an_error_but_no_correlation(constant: float) -> None:
    metrics = regression_metrics([constant] * 7, [1, 2, 3, 4, 5, 6, 7])
    assert metrics["pearson"] == metrics["spearman"] == {"value": None, "interval_95": None}
    assert metrics["rmse"]["interval_95"][0] < metrics["rmse"]["value"] < metrics["rmse"]["interval_95"][1]
    assert pearson([1, 2, 3], [constant] * 3) is spearman([1, 2, 3], [constant] * 3) is None


def test_what_varies_by_rounding_alone_is_constant() -> None:
    nearly = [1 / 3, np.nextafter(1 / 3, 1), 1 / 3]
    assert pearson(nearly, [1, 2, 3]) is spearman(nearly, [1, 2, 3]) is None


def test_a_correlation_that_hangs_on_one_row_has_a_wide_interval() -> None:
    """A resample in 2.7 draws none of the row that differs: the correlation is undefined there, not narrowly known."""
    predictions = [0.0] * 99 + [1.0]
    metrics = regression_metrics(predictions, list(range(100)))
    assert metrics["pearson"]["value"] == pytest.approx(49.5 / math.sqrt(0.99 * 83325))
    assert metrics["pearson"]["interval_95"] == metrics["spearman"]["interval_95"] == [-1, 1]


@pytest.mark.parametrize("metric", [rmse, pearson, spearman, regression_metrics])
@pytest.mark.parametrize(
    ("predictions", "targets", "expected"),
    [
        ([], [], "at least 2 rows; got 0"),
        ([1.0], [1.0], "at least 2 rows; got 1"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], "got 2 predictions and 3 targets"),
        ([1.0, math.nan], [1.0, 2.0], "every prediction must be a finite number; row 1's is nan"),
        ([1.0, 2.0], [math.inf, 2.0], "every target must be a finite number; row 0's is inf"),
        (np.ones((2, 1)), [1.0, 2.0], r"predictions must be one number a row; got an array of shape \(2, 1\)"),
    ],
)
def test_what_has_no_metrics_is_an_error(
    metric: Callable[..., Any], predictions: Any, targets: Any, expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        metric(predictions, targets)


def test_the_difference_of_two_predictors_is_taken_on_the_same_resamples() -> None:
    """Twice the error on every row: each resample's difference is that of its rows, as numpy draws them."""
    targets = np.linspace(0, 5, 30)
    errors = np.sin(np.arange(30.0))
    found = rmse_difference(targets + 2 * errors, targets + errors, targets, seed=3)
    rng = np.random.default_rng(3)
    drawn = [np.sqrt(np.mean(errors[rng.integers(30, size=30)] ** 2)) for _ in range(2000)]
    assert found["value"] == pytest.approx(np.sqrt(np.mean(errors**2)))
    assert found["interval_95"] == pytest.approx(list(np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")))
    other = rmse_difference(targets + 2 * errors, targets + errors, targets)
    assert other == rmse_difference(targets + 2 * errors, targets + errors, targets, seed=0) != found
    assert rmse_difference(targets, targets + 1, targets)["interval_95"] == pytest.approx([-1, -1])
