from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM, PreTrainedModel

from interventions import PrefixReftConfig, get_prefix_reft_model
from interventions.sites import SITES, parse_layers, site_at, site_module, site_path, site_width
from reft_math.errors import UserError

FAMILIES = {
    **dict.fromkeys(("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3"), SITES),
    "Phi3": ("ffn_down", "attn_o", "block"),
    "GPTNeoX": ("ffn_up", "ffn_down", "attn_o", "block"),
}
PLACES = [(family, site) for family, sites in FAMILIES.items() for site in sites]


def gpt2() -> PreTrainedModel:
    """Of a family without names here; its linears are no `nn.Linear`."""
    torch.manual_seed(0)
    config = GPT2Config(n_embd=8, n_head=2, n_layer=2, n_inner=12, vocab_size=64, initializer_range=0.5)
    return GPT2LMHeadModel(config).eval()


def opt() -> PreTrainedModel:
    sizes = {"hidden_size": 8, "word_embed_proj_dim": 8, "num_attention_heads": 2, "num_hidden_layers": 2}
    torch.manual_seed(0)
    return OPTForCausalLM(OPTConfig(**sizes, ffn_dim=12, vocab_size=64, max_position_embeddings=32)).eval()


@pytest.mark.parametrize(
    ("family", "site"),
    [
        *PLACES,
        ("Phi3", "model.layers.{layer}.mlp.gate_up_proj"),
        ("GPTNeoX", "gpt_neox.layers.{layer}.attention.query_key_value"),
        ("Llama", "model.layers.{layer}.mlp.act_fn"),
        ("Mistral", "model.layers.{layer}.self_attn"),
    ],
)
def test_every_site_of_every_family_is_where_its_name_says(
    tiny_model: Callable[..., PreTrainedModel], family: str, site: str
) -> None:
    """A bias put on the site of one layer changes the logits, and by what a hook on that module with that bias does."""
    assert_bias_acts(tiny_model(family), site)


@pytest.mark.parametrize(
    ("build", "site"),
    [
        (gpt2, "transformer.h.{layer}.mlp.c_fc"),
        (gpt2, "block"),
        (opt, "model.decoder.layers.{layer}.self_attn.q_proj"),
        (opt, "block"),
    ],
)
def test_other_decoders_have_blocks_and_paths(build: Callable[[], PreTrainedModel], site: str) -> None:
    assert_bias_acts(build(), site)


def assert_bias_acts(model: PreTrainedModel, site: str) -> None:
    tokens = torch.arange(3, 11)[None]
    plain = model(tokens).logits
    reft_model = get_prefix_reft_model(model, PrefixReftConfig(site=site, layers="1"))
    bias = torch.linspace(-1, 1, site_width(model, site))

    def add(module: nn.Module, args: object, output: Any) -> Any:
        return (output[0] + bias, *output[1:]) if isinstance(output, tuple) else output + bias

    with torch.no_grad():
        reft_model.biases()[1].copy_(bias)
        got = reft_model(tokens).logits
        reft_model.unload()
        handle = site_module(model, site, 1).register_forward_hook(add)
        expected = model(tokens).logits
        handle.remove()
    assert not torch.equal(got, plain)
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("text", "numbers"), [("all", (0, 1, 2, 3)), ("2", (2,)), ("0,2-3", (0, 2, 3)), ([3, 1], (1, 3))]
)
def test_layers(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_layers(text, 4) == numbers


@pytest.mark.parametrize("text", ["", "4", "0-4", "-1", "1,1", "3-1", "x", [4], "0-99999999999999", "99999999999999"])
def test_layers_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="layers must"):
        parse_layers(text, 4)


@pytest.mark.parametrize(
    ("family", "site", "message"),
    [
        ("Llama", "mlp", r"has no site 'mlp'; it has ffn_up, .*block"),
        (
            "Phi3",
            "ffn_up",
            r"a Phi3ForCausalLM has no site 'ffn_up'; it has ffn_down, attn_o, block, .*--site-path",
        ),
        ("GPTNeoX", "attn_q", r"has no site 'attn_q'; it has ffn_up, ffn_down, attn_o, block"),
        ("Llama", "model.layers.0.mlp.up_proj", r"has no site 'model.layers.0.mlp.up_proj'.*such as .*\{layer\}"),
        (
            "Llama",
            "model.layers.{layer}.mlp.c_fc",
            r"no module .*0.mlp.c_fc; model.layers.0.mlp has gate_proj",
        ),
        ("Llama", "transformer.h.{layer}", r"no module transformer.h.0; LlamaForCausalLM has model, lm_head"),
        ("Llama", "model.{layer}.mlp", r"no module model.0.mlp; model has embed_tokens, layers"),
        ("Llama", "model.layers.{layer}.mlp.up_proj.weight", r"up_proj has none within"),
    ],
)
def test_a_site_the_model_lacks_lists_those_it_has(
    tiny_model: Callable[..., PreTrainedModel], family: str, site: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        get_prefix_reft_model(tiny_model(family), PrefixReftConfig(site=site))


def test_a_name_that_only_some_families_have_is_not_guessed() -> None:
    with pytest.raises(UserError, match=r"a GPT2LMHeadModel has no site 'ffn_up'; it has block, and in training"):
        get_prefix_reft_model(gpt2(), PrefixReftConfig())


@pytest.mark.parametrize(
    ("build", "site", "found"),
    [
        (opt, "model.decoder.layers.{layer}.fc1", "no such tensor at layer 0, no such tensor at layer 1"),  # flattened
        (gpt2, "transformer.h.{layer}.attn.attn_dropout", "no such tensor at layer 0"),  # weights, not vectors
    ],
)
def test_a_module_must_give_a_vector_for_every_token(
    build: Callable[[], PreTrainedModel], site: str, found: str
) -> None:
    with pytest.raises(UserError, match=found):
        get_prefix_reft_model(build(), PrefixReftConfig(site=site))


def test_layers_of_unlike_widths_are_refused() -> None:
    model = gpt2()
    model.transformer.h[1].mlp = model.transformer.h[1].mlp.__class__(20, model.config)
    with pytest.raises(UserError, match=r"one width in all layers; .* has 12 at layer 0, 20 at layer 1"):
        get_prefix_reft_model(model, PrefixReftConfig(site="transformer.h.{layer}.mlp.c_fc"))


def test_a_site_is_found_by_its_path(tiny_model: Callable[..., PreTrainedModel]) -> None:
    for site in SITES:
        path = site_path(tiny_model(), site, 3)
        assert site_at(path.removeprefix("model.layers.3").removeprefix(".")) == site
    assert site_at("mlp.gate_proj") is None
