from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from interventions import PrefixReftConfig, get_prefix_reft_model

Cast = Callable[[Any], Any]
TOKENS = torch.arange(3, 17).view(2, 7)
CASTS: dict[str, tuple[Cast, torch.dtype]] = {
    "to dtype": (lambda model: model.to(torch.bfloat16), torch.bfloat16),
    "to device and dtype": (lambda model: model.to("cpu", torch.float16), torch.float16),
    "half": (lambda model: model.half(), torch.float16),
    "bfloat16": (lambda model: model.bfloat16(), torch.bfloat16),
    "type": (lambda model: model.type(torch.bfloat16), torch.bfloat16),
    "there and back": (lambda model: model.half().float(), torch.float32),
    "double and down": (lambda model: model.double().bfloat16().float(), torch.float32),
    "cpu": (lambda model: model.cpu(), torch.float32),
}


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize(
    ("intervention", "site"), [("red", "ffn_up"), ("bias", "ffn_down"), ("loreft", "block"), ("direft", "attn_q")]
)
def test_a_cast_of_the_model_is_one_of_its_base(
    tiny_model: Callable[..., PreTrainedModel], intervention: str, site: str, cast: str
) -> None:
    """As the same parameters on a base that was cast without them, to the last bit."""
    config = PrefixReftConfig(intervention=intervention, site=site, gate="kl:0.5,min=2")
    reft_model = get_prefix_reft_model(tiny_model(), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in reft_model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    into, dtype = CASTS[cast]
    there = get_prefix_reft_model(into(tiny_model()), config)
    there.interventions.load_state_dict(reft_model.interventions.state_dict())

    assert into(reft_model) is reft_model
    assert {parameter.dtype for parameter in reft_model.parameters()} == {torch.float32}
    assert reft_model.model.dtype == dtype
    assert torch.equal(reft_model(TOKENS).logits, there(TOKENS).logits)
    settings = {"max_new_tokens": 4, "eos_token_id": None}
    assert torch.equal(reft_model.generate(TOKENS, **settings), there.generate(TOKENS, **settings))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("intervention", ["red", "bias", "loreft"])
def test_torchs_default_dtype_is_not_theirs(
    tiny_model: Callable[..., PreTrainedModel], intervention: str, dtype: torch.dtype
) -> None:
    model = tiny_model()
    torch.set_default_dtype(dtype)
    try:
        reft_model = get_prefix_reft_model(model, PrefixReftConfig(intervention=intervention))
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in reft_model.parameters()} == {torch.float32}
