from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from reft_math.errors import UserError
from reft_math.regression.grid import Grid
from reft_math.regression.losses import log_loss, mbr, raft, squared_error, string_cross_entropy
from reft_math.regression.predictors import entropy, rail
from reft_math.regression.scores import grid_log_probs

GridLoss = Callable[..., torch.Tensor]
GRID_LOSSES = [raft, mbr, string_cross_entropy]
VALUES = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
TARGETS = torch.tensor([1.0, 2.5, 4.0, 3.75], dtype=torch.float64)


def random_logits(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def random_rows(rows: int = 4, numbers: int = 3) -> torch.Tensor:
    """Log-probabilities of part of a larger vocabulary."""
    return random_logits(rows, numbers + 2).log_softmax(dim=-1)[:, :numbers]


# --- the paper's lemmas on training -----------------------------------------------------------------------------------


def descend(loss: GridLoss, values: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-probabilities over the grid after gradient descent on free logits, a row for each row of targets.

    Targets are ``(contexts, draws)``: each context's y* takes every one of its draws.
    """
    logits = torch.zeros(len(targets), len(values), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.1)
    for _ in range(1500):
        optimiser.zero_grad()
        rows = logits.log_softmax(dim=-1).repeat_interleave(targets.shape[1], dim=0)
        loss(rows, values, targets.flatten()).backward()
        optimiser.step()
    return logits.detach().log_softmax(dim=-1)


# Means 2.4, 4.2 and 1.7, not halfway between numbers; all draws lie within lemma 3's grids.
DRAWS = torch.tensor([[1.0, 1.0, 1.5, 3.5, 5.0], [5.0, 5.0, 4.5, 4.5, 2.0], [1.0, 2.0, 2.0, 2.0, 1.5]]).double()


@pytest.mark.parametrize("grid", [[1, 2, 3, 4, 5], [1, 5], [0, 9]])
def test_lemma_3_raft_finds_the_bayes_mean_on_any_grid_that_spans_the_targets(grid: list[int]) -> None:
    values = torch.tensor(grid, dtype=torch.float64)
    predicted = rail(descend(raft, values, DRAWS), values)
    torch.testing.assert_close(predicted, DRAWS.mean(dim=1), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("grid", "nearest"), [([1, 2, 3, 4, 5], [1, 3, 1]), ([1, 5], [0, 1, 0]), ([0, 9], [0, 0, 0]), ([4, 0], [0, 0, 1])]
)
def test_lemma_4_mbr_puts_all_on_the_number_nearest_to_the_mean(grid: list[int], nearest: list[int]) -> None:
    values = torch.tensor(grid, dtype=torch.float64)
    log_probs = descend(mbr, values, DRAWS)
    expected = F.one_hot(torch.tensor(nearest), len(grid)).double()
    torch.testing.assert_close(log_probs.exp(), expected, rtol=0, atol=1e-3)
    assert (entropy(log_probs) < 0.01).all()


def test_before_training_raft_is_the_squared_error_of_zero_shot_rail(
    tiny_model: Callable[..., PreTrainedModel],
) -> None:
    model = tiny_model("Llama")
    digits = Grid(torch.arange(1.0, 6.0).double(), tuple("12345"), tuple((token,) for token in range(11, 16)))
    prompts, targets = torch.tensor([[1, 30, 31, 32], [1, 40, 41, 42]]), torch.tensor([3.25, 1.0])
    with torch.no_grad():
        probabilities = model(input_ids=prompts).logits[:, -1].softmax(dim=-1)
    zero_shot = sum(y * probabilities[:, 10 + y] for y in range(1, 6))
    loss = raft(grid_log_probs(model, prompts, torch.ones_like(prompts), digits), digits.values, targets)
    torch.testing.assert_close(loss, ((zero_shot - targets) ** 2).mean())
    assert loss.requires_grad


# --- each loss by its formula -----------------------------------------------------------------------------------------


def test_every_row_of_the_table_by_hand() -> None:
    log_probs = torch.tensor([[0.2, 0.1, 0.1], [0.05, 0.5, 0.25]]).double().log()
    targets = torch.tensor([1.0, 3.5]).double()
    expected: dict[GridLoss, list[float]] = {
        raft: [(0.8 - 1) ** 2, (2.05 - 3.5) ** 2],
        mbr: [0.1 * 1 + 0.1 * 9, 0.05 * 6.25 + 0.5 * 2.25 + 0.25 * 0.25],
        string_cross_entropy: [-math.log(0.2), -math.log(0.25)],
    }
    for loss, rows in expected.items():
        torch.testing.assert_close(loss(log_probs, VALUES, targets, reduction="none"), torch.tensor(rows).double())
        torch.testing.assert_close(loss(log_probs, VALUES, targets), torch.tensor(sum(rows) / 2).double())
    rows = [(0.5 - 1) ** 2, (4 - 3.5) ** 2]
    predictions = torch.tensor([0.5, 4.0]).double()
    torch.testing.assert_close(squared_error(predictions, targets, reduction="none"), torch.tensor(rows).double())
    torch.testing.assert_close(squared_error(predictions, targets), torch.tensor(0.25).double())


@pytest.mark.parametrize("loss", [raft, mbr])
def test_normalised_losses_see_the_grids_own_distribution(loss: GridLoss) -> None:
    log_probs = random_rows()
    over_the_grid = log_probs - log_probs.logsumexp(dim=-1, keepdim=True)
    normalised = loss(log_probs, VALUES, TARGETS, normalised=True)
    torch.testing.assert_close(normalised, loss(over_the_grid, VALUES, TARGETS))
    assert abs(normalised - loss(log_probs, VALUES, TARGETS)) > 0.1


@pytest.mark.parametrize("loss", GRID_LOSSES)
def test_a_grid_may_have_one_number(loss: GridLoss) -> None:
    found = loss(torch.tensor([[-2.0]]), torch.tensor([5.0]), torch.tensor([4.0]))
    p = math.exp(-2)
    expected = {raft: (5 * p - 4) ** 2, mbr: p, string_cross_entropy: 2.0}[loss]
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", GRID_LOSSES)
def test_values_and_targets_follow_the_log_probabilities_to_their_device(loss: GridLoss) -> None:
    assert loss(random_rows().to("meta"), VALUES, TARGETS).device.type == "meta"


def test_string_cross_entropy_of_single_tokens_is_torchs() -> None:
    logits, numbers = random_logits(4, 10), torch.tensor([3, 0, 9, 3])
    loss = string_cross_entropy(logits.log_softmax(dim=-1), torch.arange(10), numbers)
    torch.testing.assert_close(loss, F.cross_entropy(logits, numbers))


def test_string_cross_entropy_finds_targets_that_float32_has_rounded() -> None:
    tenths = torch.arange(51, dtype=torch.float64) / 10
    rows = string_cross_entropy(random_rows(51, 51), tenths, tenths.float(), reduction="none")
    torch.testing.assert_close(rows, -random_rows(51, 51).diagonal())


def test_log_loss_is_binary_cross_entropy() -> None:
    p, targets = torch.tensor([0.1, 0.5, 0.99, 0.7]).double(), torch.tensor([0.0, 0.3, 1.0, 0.75]).double()
    expected = F.binary_cross_entropy(p, targets, reduction="none")
    torch.testing.assert_close(log_loss(p.log(), targets, reduction="none"), expected)
    torch.testing.assert_close(log_loss(p.log(), targets), expected.mean())


@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("log_p", [0.0, -1e-8, -50.0, -1e4])
def test_log_loss_and_its_gradient_are_finite_at_both_ends(log_p: float, target: float) -> None:
    argument = torch.tensor([log_p], requires_grad=True)
    loss = log_loss(argument, torch.tensor([target]))
    loss.backward()
    assert loss.isfinite()
    assert argument.grad is not None
    assert argument.grad.isfinite().all()


def test_an_impossible_token_costs_nothing_where_the_target_is_zero() -> None:
    argument = torch.tensor([-math.inf], requires_grad=True)
    loss = log_loss(argument, torch.zeros(1))
    loss.backward()
    assert argument.grad is not None
    assert (loss.item(), argument.grad.item()) == (0, 0)


def test_log_loss_refuses_targets_that_were_not_rescaled() -> None:
    with pytest.raises(UserError, match=r"between 0 and 1; got 0.5 to 1.5: rescale"):
        log_loss(torch.tensor([-1.0, -1.0]), torch.tensor([0.5, 1.5]))


@pytest.mark.parametrize("loss", GRID_LOSSES)
def test_targets_of_another_shape_do_not_broadcast(loss: GridLoss) -> None:
    with pytest.raises(ValueError, match="one target for each row"):
        loss(random_rows(), VALUES, TARGETS[:, None])
    with pytest.raises(ValueError, match="one target for each row"):
        squared_error(torch.zeros(4), TARGETS[:, None])


# --- number tokens inside a sequence ----------------------------------------------------------------------------------

# --- precision and derivatives ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_and_then_left(dtype: torch.dtype) -> None:
    """Every loss is what float32 makes of the rounded input: nothing is summed or squared in half precision."""
    log_probs = random_rows().to(dtype)
    unit = torch.tensor([0.1, 0.2, 0.9, 1.0])
    for loss in (
        *(lambda x, f=f: f(x, VALUES, TARGETS) for f in GRID_LOSSES),
        *(lambda x, f=f: f(x, VALUES, TARGETS, normalised=True) for f in (raft, mbr)),
        lambda x: log_loss(x[:, 0], unit),
        lambda x: squared_error(x[:, 0], TARGETS),
    ):
        value = loss(log_probs)
        assert value.dtype == torch.float32
        assert torch.equal(value, loss(log_probs.float()))
        assert loss(log_probs.double()).dtype == torch.float64


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("loss", [raft, mbr])
def test_probabilities_that_underflow_leave_losses_and_gradients_finite(loss: GridLoss, normalised: bool) -> None:
    log_probs = torch.tensor([[-2000.0, -2001.0, -math.inf]], requires_grad=True)
    value = loss(log_probs, VALUES, torch.tensor([2.0]), normalised=normalised)
    value.backward()
    assert value.isfinite()
    assert log_probs.grad is not None
    assert log_probs.grad.isfinite().all()
    assert log_probs.grad.any() == normalised  # what is nothing of the whole can be much of the grid


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: raft(x, VALUES, TARGETS),
        lambda x: raft(x, VALUES, TARGETS, normalised=True),
        lambda x: mbr(x, VALUES, TARGETS),
        lambda x: mbr(x, VALUES, TARGETS, normalised=True),
        lambda x: string_cross_entropy(x, VALUES, TARGETS, reduction="none"),
        lambda x: squared_error(x[:, 0], TARGETS, reduction="none"),
        lambda x: log_loss(x[:, 0], TARGETS / 4),
        lambda x: raft(random_rows(), x[0], TARGETS, reduction="none"),  # learnable weights
    ],
    ids=[
        "raft",
        "raft normalised",
        "mbr",
        "mbr normalised",
        "string cross-entropy",
        "squared error",
        "log loss",
        "learnable raft",
    ],
)
def test_gradients_are_the_derivatives(loss: Callable[[torch.Tensor], torch.Tensor]) -> None:
    assert torch.autograd.gradcheck(loss, (random_rows().requires_grad_(),))
