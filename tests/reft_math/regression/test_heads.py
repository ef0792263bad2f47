from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import ndtr
from torch.func import functional_call

from reft_math.errors import UserError
from reft_math.regression import heads
from reft_math.regression.grid import Grid
from reft_math.regression.heads import HEADS, MLP_WIDTH, Head, HeadName, make_head
from reft_math.regression.predictors import rail
from reft_math.regression.scores import PromptOutputs

Array = NDArray[np.float64]

VOCABULARY, WIDTH, TOKEN = 11, 7, 4
NUMBERS = {3: 1.0, 9: 2.0, 5: 4.0}  # by the token that writes each
GRID = Grid(torch.tensor(list(NUMBERS.values())).double(), ("1", "2", "4"), tuple((token,) for token in NUMBERS))
LENGTHS = (5, 2, 1)
POOLS = ("mean", "min", "max")


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """RELISH with few enough weights for finite differences."""
    monkeypatch.setattr(heads, "RELISH_WIDTH", 6)
    monkeypatch.setattr(heads, "RELISH_HEADS", 2)


def random_reading() -> PromptOutputs:
    """Three prompts padded to 6 columns; what stands at padding is far greater than anything else."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, VOCABULARY, generator=generator, dtype=torch.float64)
    hidden = torch.randn(3, 6, WIDTH, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[0] * (6 - length) + [1] * length for length in LENGTHS])
    hidden = torch.where(mask.bool()[..., None], hidden, 1e4 * hidden)
    return PromptOutputs(logits, mask, hidden, logits.log_softmax(dim=-1)[:, list(NUMBERS)])


def trained(name: HeadName) -> Head:
    """A head of any weights, its biases not 0, in float64."""
    head = make_head(name, GRID, VOCABULARY, WIDTH, TOKEN).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return head


def cast(reading: PromptOutputs, dtype: torch.dtype) -> PromptOutputs:
    assert reading.hidden is not None
    assert reading.log_probs is not None
    return PromptOutputs(
        reading.logits.to(dtype), reading.attention_mask, reading.hidden.to(dtype), reading.log_probs.to(dtype)
    )


# --- each head by its formula -----------------------------------------------------------------------------------------


def softmax(f: Array) -> Array:
    powers: Array = np.exp(f)
    return powers / powers.sum()


def normed(x: Array, weights: dict[str, Array], name: str) -> Array:
    scaled: Array = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def relish(w: dict[str, Array], f: Array, e: Array) -> float:
    """A row's tokens one by one, attention head by head."""
    u, r = e @ w["projection.weight"].T + w["projection.bias"], w["state"]
    for block in (f"blocks.{index}" for index in range(heads.RELISH_BLOCKS)):
        to = w[f"{block}.attention.in_proj_weight"], w[f"{block}.attention.in_proj_bias"]
        (query, keys, values) = (
            x @ weight.T + bias
            for x, weight, bias in zip((r, u, u), np.split(to[0], 3), np.split(to[1], 3), strict=True)
        )
        update, size = [], heads.RELISH_WIDTH // heads.RELISH_HEADS
        for part in (slice(start, start + size) for start in range(0, heads.RELISH_WIDTH, size)):
            update += list(softmax(keys[:, part] @ query[part] / np.sqrt(size)) @ values[:, part])
        out = w[f"{block}.attention.out_proj.weight"] @ np.array(update) + w[f"{block}.attention.out_proj.bias"]
        r = normed(r + out, w, f"{block}.norms.0")
        inner = w[f"{block}.inner.weight"] @ r + w[f"{block}.inner.bias"]
        inner = inner * ndtr(inner)  # GELU
        r = normed(r + w[f"{block}.outer.weight"] @ inner + w[f"{block}.outer.bias"], w, f"{block}.norms.1")
    return float(w["linear.bias"][0] + w["linear.weight"][0] @ r)


Formula = Callable[[dict[str, Array], Array, Array], float]
FORMULAS: dict[str, Formula] = {
    "logit": lambda w, f, e: w["bias"] + f[TOKEN],
    "mean": lambda w, f, e: w["linear.bias"][0] + w["linear.weight"][0] @ e.mean(axis=0),
    "min": lambda w, f, e: w["linear.bias"][0] + w["linear.weight"][0] @ e.min(axis=0),
    "max": lambda w, f, e: w["linear.bias"][0] + w["linear.weight"][0] @ e.max(axis=0),
    "mlp": lambda w, f, e: (
        w["outer.bias"][0] + w["outer.weight"][0] @ (1 / (1 + np.exp(-w["inner.weight"] @ f - w["inner.bias"])))
    ),
    "probabilities": lambda w, f, e: w["linear.bias"][0] + w["linear.weight"][0] @ softmax(f),
    "relish": relish,
    "raft-grid": lambda w, f, e: w["weight"] @ softmax(f)[list(NUMBERS)],
    "raft-all": lambda w, f, e: w["weight"] @ softmax(f),
}


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_is_its_rows_formula(name: HeadName) -> None:
    head, reading = trained(name), random_reading()
    assert reading.hidden is not None
    weights = {key: value.numpy() for key, value in head.state_dict().items()}
    expected = [
        FORMULAS[name](weights, reading.logits[row].numpy(), reading.hidden[row, 6 - length :].numpy())
        for row, length in enumerate(LENGTHS)
    ]
    torch.testing.assert_close(head(reading), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_reads_what_it_says_and_nothing_else(name: HeadName) -> None:
    """Hidden states and a grid's scores cost a model's pass something: they are made where they are needed only."""
    head, reading = trained(name), random_reading()
    needed = dataclasses.replace(
        reading,
        hidden=reading.hidden if head.needs_hidden else None,
        log_probs=reading.log_probs if head.needs_grid else None,
    )
    assert torch.equal(head(needed), head(reading))
    assert (head.needs_hidden, head.needs_grid) == (name in (*POOLS, "relish"), name == "raft-grid")


@pytest.mark.parametrize("name", [*POOLS, "relish"])
@torch.no_grad()
def test_padding_and_company_change_no_rows_prediction(name: HeadName) -> None:
    head, reading = trained(name), random_reading()
    assert reading.hidden is not None
    for row, length in enumerate(LENGTHS):
        alone = PromptOutputs(reading.logits[[row]], torch.ones(1, length), reading.hidden[[row], 6 - length :])
        torch.testing.assert_close(head(alone), head(reading)[[row]], rtol=0, atol=1e-12)


# --- starts -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_learnable_raft_starts_as_rail() -> None:
    reading = cast(random_reading(), torch.float32)
    assert reading.log_probs is not None
    expected = rail(reading.log_probs, GRID.values)
    grid_head, vocabulary_head = (make_head(name, GRID, VOCABULARY, WIDTH, TOKEN) for name in ("raft-grid", "raft-all"))
    assert torch.equal(grid_head(reading), expected)
    torch.testing.assert_close(vocabulary_head(reading), expected, rtol=0, atol=1e-6)  # the sum has more terms, all 0
    weights = vocabulary_head.state_dict()["weight"]
    assert weights.tolist() == [NUMBERS.get(token, 0.0) for token in range(VOCABULARY)]


@torch.no_grad()
def test_the_final_tokens_logit_starts_as_the_tokens_logit() -> None:
    reading = cast(random_reading(), torch.float32)
    head = make_head("logit", GRID, VOCABULARY, WIDTH, TOKEN)
    assert torch.equal(head(reading), reading.logits[:, TOKEN])


@pytest.mark.parametrize(
    ("name", "bounds", "zero"),
    [
        *((name, {"linear.weight": WIDTH**-0.5}, "linear.bias") for name in POOLS),
        ("probabilities", {"linear.weight": VOCABULARY**-0.5}, "linear.bias"),
        (
            "mlp",
            {"inner.weight": VOCABULARY**-0.5, "inner.bias": VOCABULARY**-0.5, "outer.weight": MLP_WIDTH**-0.5},
            "outer.bias",
        ),
    ],
)
def test_other_weights_start_uniform_by_their_fan_in_and_the_last_bias_at_zero(
    name: HeadName, bounds: dict[str, float], zero: str
) -> None:
    torch.manual_seed(0)
    heads = [make_head(name, GRID, VOCABULARY, WIDTH, TOKEN).state_dict() for _ in range(50)]
    assert {*bounds, zero} == set(heads[0])
    assert not any(head[zero].any() for head in heads)
    for key, bound in bounds.items():
        drawn = torch.cat([head[key].flatten() for head in heads])
        assert drawn.abs().max() <= bound
        assert drawn.min() < -0.95 * bound
        assert drawn.max() > 0.95 * bound


def test_a_grid_with_several_tokens_a_number_is_refused_where_single_tokens_are_weighed() -> None:
    grid = Grid(GRID.values[:2], ("1", "20"), ((3,), (5, 6, 2)))
    with pytest.raises(UserError, match=r"raft-all weighs single tokens: .* got 3 tokens .* raft-grid") as caught:
        make_head("raft-all", grid, VOCABULARY, WIDTH, TOKEN)
    assert "\n" not in str(caught.value)
    assert make_head("raft-grid", grid, VOCABULARY, WIDTH, TOKEN).needs_grid


# --- precision, derivatives, files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_half_precision_is_read_and_then_left(name: HeadName) -> None:
    """The model's bfloat16 is all that is rounded: sums, softmax and weights are float32."""
    head, reading = trained(name).float(), cast(random_reading(), torch.bfloat16)
    predictions = head(reading)
    assert predictions.dtype == torch.float32
    assert torch.equal(predictions, head(cast(reading, torch.float32)))
    made = make_head(name, GRID, VOCABULARY, WIDTH, TOKEN)
    assert {parameter.dtype for parameter in made.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", HEADS)
def test_gradients_are_the_derivatives(name: HeadName) -> None:
    """By the head's weights, and by what the model gives it: a tuned model is trained through its head."""
    head, reading = trained(name), random_reading()
    names = [key for key, _ in head.named_parameters()]
    kept = reading.attention_mask.bool()[..., None]

    def predictions(logits: torch.Tensor, hidden: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        log_probs = logits.log_softmax(dim=-1)[:, list(NUMBERS)]
        changed = PromptOutputs(logits, reading.attention_mask, hidden, log_probs)
        return functional_call(head, dict(zip(names, weights, strict=True)), (changed,))  # type: ignore[no-any-return]

    assert reading.hidden is not None
    hidden = reading.hidden.where(kept, 0)
    inputs = [tensor.detach().requires_grad_() for tensor in (reading.logits, hidden, *head.parameters())]
    assert torch.autograd.gradcheck(predictions, inputs, fast_mode=name == "relish")
    gradients = torch.autograd.grad(predictions(*inputs).sum(), inputs, allow_unused=True)
    assert all(gradient is not None and gradient.any() for gradient in gradients[2:])
    assert (gradients[1] is not None and gradients[1].any()) == head.needs_hidden
    if gradients[1] is not None:
        assert not gradients[1].masked_select(~kept).any()


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_weights_come_back_into_a_new_head(name: HeadName) -> None:
    head, reading = trained(name), random_reading()
    other = make_head(name, GRID, VOCABULARY, WIDTH, TOKEN).double()
    assert not torch.equal(other(reading), head(reading))
    other.load_state_dict(head.state_dict())
    assert torch.equal(other(reading), head(reading))


@pytest.mark.parametrize(("width", "millions"), [(4096, 3.4), (5376, 3.7)])
def test_relish_has_as_many_weights_as_its_paper_says(
    monkeypatch: pytest.MonkeyPatch, width: int, millions: float
) -> None:
    """Of Llama 3.1 8B's hidden states and of Gemma 3 27B's."""
    monkeypatch.undo()
    head = make_head("relish", GRID, VOCABULARY, width, TOKEN)
    assert round(sum(parameter.numel() for parameter in head.parameters()) / 1e6, 1) == millions
