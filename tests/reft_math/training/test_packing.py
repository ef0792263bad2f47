from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from accelerate import cpu_offload
from transformers import PreTrainedModel

from reft_math.training.packing import keeps_packed_rows_apart, logits_at

FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3", "Phi3", "GPTNeoX")


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_at_places_are_those_of_all_places(tiny_model: Callable[..., PreTrainedModel], family: str) -> None:
    """Soft caps and biases of a family's output come after the hook."""
    model = tiny_model(family)
    tokens = torch.arange(3, 15).view(2, 6)
    places = torch.tensor([[0, 5], [7, 11], [11, 3]])
    with torch.no_grad(), logits_at(model, places):
        picked = model(tokens).logits
    whole = model(tokens).logits
    assert whole.shape[:2] == (2, 6), "the hook is gone"
    torch.testing.assert_close(picked, whole.flatten(0, 1)[places], rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_keeps_rows_on_a_line_apart(tiny_model: Callable[..., PreTrainedModel], family: str) -> None:
    model = tiny_model(family)
    assert keeps_packed_rows_apart(model)
    assert keeps_packed_rows_apart(model.bfloat16())
    model.set_attn_implementation("eager")
    assert keeps_packed_rows_apart(model)


class Leaking(transformers.LlamaForCausalLM):
    """Attends to whatever is before, on the line."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, **kwargs: Any) -> Any:
        mask = torch.ones_like(input_ids)
        return super().forward(input_ids, attention_mask=mask, position_ids=position_ids, **kwargs)


class Counting(transformers.GPT2LMHeadModel):
    """Keeps rows apart and learnt other positions for the second on a line."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, **kwargs: Any) -> Any:
        starts = (position_ids == 0).cumsum(dim=-1) - 1
        return super().forward(input_ids, position_ids=position_ids + 40 * starts, **kwargs)


class SingleLine(transformers.LlamaForCausalLM):
    """Keeps rows apart on a single line only, as flash attention does."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, **kwargs: Any) -> Any:
        mask = None if len(input_ids) == 1 else torch.ones_like(input_ids)
        return super().forward(input_ids, attention_mask=mask, position_ids=position_ids, **kwargs)


def test_a_model_that_mixes_rows_is_found_out(tiny_model: Callable[..., PreTrainedModel]) -> None:
    plain = tiny_model("Llama")
    for kind in (Leaking, SingleLine):
        model = kind(plain.config).eval()
        model.load_state_dict(plain.state_dict())
        assert not keeps_packed_rows_apart(model)

    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.2)
    assert keeps_packed_rows_apart(transformers.GPT2LMHeadModel(config).eval())
    assert not keeps_packed_rows_apart(Counting(config).eval())


def test_a_model_whose_weights_wait_elsewhere_is_tried_where_it_calculates(
    tiny_model: Callable[..., PreTrainedModel],
) -> None:
    model = tiny_model()
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.get_input_embeddings().weight.device.type == "meta"
    assert keeps_packed_rows_apart(model)
