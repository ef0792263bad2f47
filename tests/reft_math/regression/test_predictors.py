from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from reft_math.errors import UserError
from reft_math.regression.predictors import entropy, median, mode, normalise, parse_number, rail, rail_from_samples

Predictor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
VALUES = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)


def logs(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def random_rows(rows: int, numbers: int) -> torch.Tensor:
    """Log-probabilities of part of a larger vocabulary: they sum to less than 1."""
    logits = torch.randn(rows, numbers + 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (2 * logits).log_softmax(dim=-1)[:, :numbers]


# --- the paper's lemmas on decoding ---------------------------------------------------------------------------------


def lemma_distributions(epsilon: float, largest: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The construction of lemmas 1 and 2: ``P(0) = (1 + α/2)/2 = p(N)``, ``P(N) = (1 − α/2)/2 = p(0)``, with
    ``α = ½ √(e^ε − 1)``, on the grid {0, N}. Returns log P, log p and the grid."""
    alpha = 0.5 * math.sqrt(math.exp(epsilon) - 1)
    high, low = (1 + alpha / 2) / 2, (1 - alpha / 2) / 2
    return logs(high, low), logs(low, high), torch.tensor([0, largest], dtype=torch.float64)


@pytest.mark.parametrize("epsilon", [1e-4, 0.1, 0.5])
@pytest.mark.parametrize("largest", [1.0, 9.0])
def test_lemma_1_the_mode_of_a_near_perfect_model_can_miss_by_half_the_range(epsilon: float, largest: float) -> None:
    truth, model, values = lemma_distributions(epsilon, largest)
    divergence = (truth.exp() * (truth - model)).sum()
    assert 0 < divergence <= epsilon
    error = (rail(truth, values) - mode(model, values)) ** 2
    alpha = 0.5 * math.sqrt(math.exp(epsilon) - 1)
    assert error.item() == pytest.approx((largest / 2) ** 2 * (1 + alpha / 2) ** 2)
    assert error >= (largest / 2) ** 2 * epsilon


@pytest.mark.parametrize("epsilon", [1e-4, 0.1, 0.5])
@pytest.mark.parametrize("largest", [1.0, 9.0])
def test_lemma_2_rail_misses_by_the_ranges_square_times_the_divergence(epsilon: float, largest: float) -> None:
    truth, model, values = lemma_distributions(epsilon, largest)
    error = (rail(truth, values) - rail(model, values)) ** 2
    assert error.item() == pytest.approx((largest / 4) ** 2 * (math.exp(epsilon) - 1))
    assert error >= (largest / 4) ** 2 * epsilon


# --- each predictor -------------------------------------------------------------------------------------------------


def test_rail_is_the_sum_over_the_grid_and_normalised_the_mean_over_it() -> None:
    log_probs = torch.stack([logs(0.2, 0.1, 0.1), logs(0.0, 0.0, 0.5)])
    torch.testing.assert_close(rail(log_probs, VALUES), torch.tensor([0.8, 2.0]).double())
    torch.testing.assert_close(rail(log_probs, VALUES, normalised=True), torch.tensor([2.0, 4.0]).double())


def test_a_grid_of_one_number_predicts_by_its_probability_and_normalised_not_at_all() -> None:
    five = torch.tensor([5.0])
    log_probs = torch.tensor([[0.1], [0.9]]).log()
    torch.testing.assert_close(rail(log_probs, five), torch.tensor([0.5, 4.5]))
    assert rail(log_probs, five, normalised=True).tolist() == [5, 5]


def test_learnable_weights_take_the_values_place() -> None:
    weights = VALUES.clone().requires_grad_()
    rail(logs(0.2, 0.1, 0.1), weights).backward()
    torch.testing.assert_close(weights.grad, torch.tensor([0.2, 0.1, 0.1]).double())


@pytest.mark.parametrize(
    ("predictor", "error"),
    [
        (lambda log_probs, values: rail(log_probs, values, normalised=True), lambda y, v: (y - v) ** 2),
        (median, lambda y, v: (y - v).abs()),
        (mode, lambda y, v: (y != v).double()),
    ],
    ids=["rail", "median", "mode"],
)
def test_each_predictor_has_the_least_expected_error_of_its_kind(
    predictor: Predictor, error: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> None:
    values = torch.tensor([3.0, -1.0, 0.5, 7.0, 2.0, 2.25], dtype=torch.float64)  # in no order
    log_probs = random_rows(50, len(values))
    q = log_probs.exp() / log_probs.exp().sum(dim=-1, keepdim=True)

    def expected(prediction: torch.Tensor) -> torch.Tensor:
        return (q * error(values, prediction[:, None])).sum(dim=-1)

    least = expected(predictor(log_probs, values))
    for other in torch.cat([values, torch.linspace(-2, 8, 101).double()]):
        assert (least <= expected(other.expand(50)) + 1e-12).all()


def test_of_equals_the_mode_is_the_grids_first_and_the_median_the_lower() -> None:
    assert mode(logs(0.1, 0.4, 0.4), torch.tensor([3.0, 9.0, 1.0])).item() == 9
    assert median(logs(0.25, 0.25), torch.tensor([9.0, 1.0])).item() == 1


def test_entropy_is_that_of_the_normalised_grid() -> None:
    log_probs = torch.stack([logs(0.1, 0.1, 0.1, 0.1), logs(0.2, 0.2, 0.0, 0.0), logs(0.3, 0.0, 0.0, 0.0)])
    torch.testing.assert_close(entropy(log_probs), torch.tensor([4.0, 2.0, 1.0]).double().log())


def test_normalising_survives_probabilities_that_underflow() -> None:
    log_probs = torch.tensor([[-1000.0, -1000.0 + math.log(3)]])
    torch.testing.assert_close(normalise(log_probs).exp(), torch.tensor([[0.25, 0.75]]), rtol=0, atol=1e-4)
    assert rail(log_probs, torch.tensor([1.0, 2.0])).item() == 0


@pytest.mark.parametrize("predictor", [rail, mode, median, lambda log_probs, values: entropy(log_probs)])
def test_predictors_work_in_float32_from_bfloat16_and_stay_in_float64(predictor: Predictor) -> None:
    log_probs = random_rows(20, 3)
    assert predictor(log_probs, VALUES).dtype == torch.float64
    low = predictor(log_probs.bfloat16(), VALUES)
    assert low.dtype == torch.float32
    assert torch.equal(low, predictor(log_probs.bfloat16().float(), VALUES))


# --- from text ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [("3", 3.0), (" 3.5\n", 3.5), ("-0.25", -0.25), ("4.", 4.0), ("1e2", 100.0), ("+7", 7.0)],
)
def test_a_number_is_what_float_reads(text: str, number: float) -> None:
    assert parse_number(text, default=-1.0) == number


@pytest.mark.parametrize("text", ["banana", "", "3 stars", "4.5.6", "nan", "inf", "-Infinity", "1e999"])
def test_what_is_no_finite_number_gives_the_default(text: str) -> None:
    assert parse_number(text) == 0.0
    assert parse_number(text, default=2.5) == 2.5


def test_rail_by_samples_is_their_mean_with_the_default_for_non_numbers() -> None:
    assert rail_from_samples(["1", "2", "banana", "5"]) == 2.0
    assert rail_from_samples(["1", "2", "banana", "5"], default=4.0) == 3.0
    with pytest.raises(UserError, match=r"^a mean of samples needs at least one sample; got none$"):
        rail_from_samples([])
