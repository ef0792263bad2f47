from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from interventions import PrefixReftConfig, get_prefix_reft_model
from interventions.sites import SITES, parse_layers, site_at, site_module, site_path, site_width
from reft_math.errors import UserError

FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", SITES)
def test_every_site_of_every_family_is_where_its_name_says(
    tiny_model: Callable[..., PreTrainedModel], family: str, site: str
) -> None:
    """A bias put on the site of one layer changes the logits, and by what a hook on that module with that bias does."""
    model = tiny_model(family)
    tokens = torch.arange(3, 11)[None]
    plain = model(tokens).logits
    reft_model = get_prefix_reft_model(model, PrefixReftConfig(site=site, layers="1"))
    bias = torch.linspace(-1, 1, site_width(model, site))
    with torch.no_grad():
        reft_model.biases()[1].copy_(bias)
        got = reft_model(tokens).logits
        reft_model.unload()
        handle = site_module(model, site, 1).register_forward_hook(lambda module, args, output: output + bias)
        expected = model(tokens).logits
        handle.remove()
    assert not torch.equal(got, plain)
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("text", "numbers"), [("all", (0, 1, 2, 3)), ("2", (2,)), ("0,2-3", (0, 2, 3)), ([3, 1], (1, 3))]
)
def test_layers(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_layers(text, 4) == numbers


@pytest.mark.parametrize("text", ["", "4", "0-4", "-1", "1,1", "3-1", "x", [4]])
def test_layers_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="layers must"):
        parse_layers(text, 4)


def test_a_site_the_model_lacks_lists_those_it_has(tiny_model: Callable[..., PreTrainedModel]) -> None:
    with pytest.raises(UserError, match=r"has no site 'mlp'; it has ffn_up, .*block"):
        get_prefix_reft_model(tiny_model(), PrefixReftConfig(site="mlp"))


def test_an_unknown_family_lists_the_known() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=16))
    with pytest.raises(UserError, match=r"known for LlamaForCausalLM.*the model is a GPT2LMHeadModel"):
        get_prefix_reft_model(model, PrefixReftConfig())


def test_a_site_is_found_by_its_path() -> None:
    for site in SITES:
        assert site_at(site_path(site, 3).removeprefix("model.layers.3").removeprefix(".")) == site
    assert site_at("mlp.gate_proj") is None
