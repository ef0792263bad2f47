"""Prefixes drawn and read with each prompt read once, against plain forward passes and stock ``generate``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from interventions.positions import Positions, intervention_mask
from reft_math.models.adapter import PrefixReftModel, get_prefix_reft_model
from reft_math.models.config import PrefixReftConfig
from reft_math.training.prefix_policy import Prompts, draw_prefixes, prefix_logits

PROMPTS = [[1, 5, 9, 13], [1, 7], [1, 21, 22, 23, 24, 25]]
DEVICE = torch.device("cpu")


def make_policy(base: PreTrainedModel, positions: Positions = "all", kind: str = "red") -> PrefixReftModel:
    model = get_prefix_reft_model(base, PrefixReftConfig(intervention=kind, site="ffn_up", positions=positions))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model


@pytest.mark.parametrize("family", ["GPTNeoX", "Qwen2", "Gemma3"])
@pytest.mark.parametrize("positions", ["all", "solution", "generated", "prompt"])
def test_logits_and_gradients_are_those_of_each_row_alone(
    tiny_model: Callable[..., PreTrainedModel], family: str, positions: Positions
) -> None:
    model = make_policy(tiny_model(family).double(), positions)
    model.interventions.double()
    generator = torch.Generator().manual_seed(2)
    prefixes = torch.randint(3, 64, (6, 5), generator=generator)
    prefixes[1, 3:] = -100
    prompts = Prompts.of(PROMPTS, 0, DEVICE)
    biases = list(model.biases().values())

    def plain(row: int, acting: bool) -> torch.Tensor:
        prompt = PROMPTS[row // 2]
        tokens = [token for token in prefixes[row].tolist() if token != -100]
        inputs = torch.tensor([[*prompt, *tokens[:-1]]])
        mask = intervention_mask(torch.arange(inputs.shape[1])[None] - len(prompt), positions)
        output = model(inputs, intervention_mask=mask) if acting else model.model(inputs)
        logits: torch.Tensor = output.logits[0, len(prompt) - 1 :]
        return logits

    for acting in (True, False):
        found = prefix_logits(model, prompts, prefixes, acting=acting)
        assert found.shape == (6, 5, 64)
        weights = torch.randn(found.shape, dtype=found.dtype, generator=generator) * (prefixes != -100)[..., None]
        total = torch.zeros((), dtype=found.dtype)
        for row in range(6):
            expected = plain(row, acting)
            torch.testing.assert_close(found[row, : len(expected)], expected, atol=1e-10, rtol=0)
            total = total + (expected * weights[row, : len(expected)]).sum()
        if acting:
            ours, theirs = (torch.autograd.grad(loss, biases) for loss in ((found * weights).sum(), total))
            for one, other in zip(ours, theirs, strict=True):
                assert one.abs().max() > 0
                # Other families' norms round gradients to float32, here once for all rows of a prompt.
                tolerance = 1e-10 if family == "GPTNeoX" else 1e-5
                torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("kind", ["red", "loreft"])
def test_likeliest_prefix_is_what_generate_draws(tiny_model: Callable[..., PreTrainedModel], kind: str) -> None:
    model = make_policy(tiny_model(), kind=kind)
    prompts = Prompts.of(PROMPTS, 0, DEVICE)
    drawn = draw_prefixes(model, prompts, samples=2, k=7, end_token_ids=[2], temperature=None)
    settings = {"max_new_tokens": 7, "do_sample": False, "eos_token_id": 2, "pad_token_id": -100}
    stock = model.generate(prompts.input_ids, attention_mask=prompts.attention_mask, gate="always", **settings)
    expected = torch.full((3, 7), -100)
    expected[:, : stock.shape[1] - 6] = stock[:, 6:]
    assert torch.equal(drawn, expected.repeat_interleave(2, dim=0))


def test_prefixes_are_drawn_from_the_policy_and_end_at_its_end(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = make_policy(tiny_model())
    prompts = Prompts.of(PROMPTS[:1], 0, DEVICE)
    torch.manual_seed(0)
    drawn = draw_prefixes(model, prompts, samples=4000, k=2, end_token_ids=[2, 40], temperature=1.5)
    with torch.no_grad():
        logits = prefix_logits(model, prompts, drawn[:1])[0, 0]
    expected = (logits / 1.5).softmax(dim=-1)
    share = torch.bincount(drawn[:, 0], minlength=64) / len(drawn)
    assert float((share - expected).abs().sum()) < 0.2, "twice the total variation of 4000 draws of 64 kinds"
    ended = torch.isin(drawn[:, 0], torch.tensor([2, 40]))
    assert ended.any()
    assert (drawn[ended, 1] == -100).all()
    assert (drawn[~ended] >= 0).all()
