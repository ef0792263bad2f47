from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from interventions import PrefixReftConfig, PrefixReftModel, get_prefix_reft_model, merge
from reft_math.errors import UserError

TOKENS = torch.arange(3, 19).reshape(2, 8)


def randomised(model: PreTrainedModel, **config: object) -> PrefixReftModel:
    """Interventions, and biases of the base where it has any, far from doing nothing."""
    reft_model = get_prefix_reft_model(model, PrefixReftConfig(**config))  # type: ignore[arg-type]
    torch.manual_seed(1)
    with torch.no_grad():
        biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
        for parameter in [*reft_model.interventions.parameters(), *biases]:
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return reft_model


@pytest.mark.parametrize(
    ("family", "changes", "config", "switches"),
    [
        ("Llama", {}, {"site": "ffn_up"}, {"mlp_bias": True, "attention_bias": False}),
        ("Llama", {}, {"site": "ffn_down", "layers": "1"}, {"mlp_bias": True, "attention_bias": False}),
        ("Llama", {"mlp_bias": True}, {"site": "ffn_up"}, {"mlp_bias": True, "attention_bias": False}),
        ("Llama", {}, {"site": "attn_o"}, {"mlp_bias": False, "attention_bias": True}),
        ("Llama", {}, {"site": "attn_k", "intervention": "loreft"}, {"mlp_bias": False, "attention_bias": True}),
        ("Llama", {}, {"site": "ffn_up", "intervention": "loreft"}, {"mlp_bias": True}),
        ("Llama", {}, {"site": "ffn_up", "intervention": "direft", "dropout": 0.5}, {"mlp_bias": True}),
        ("Llama", {"tie_word_embeddings": True}, {"site": "ffn_up"}, {"tie_word_embeddings": True}),
        ("Qwen2", {}, {"site": "attn_q"}, {}),
        ("Qwen2", {}, {"site": "attn_k", "layers": "0,2"}, {}),
        ("Qwen2", {}, {"site": "attn_v", "intervention": "loreft"}, {}),
        ("Qwen2", {}, {"site": "ffn_up"}, {"model_type": "llama", "mlp_bias": True}),
        ("Qwen2", {"tie_word_embeddings": True}, {"site": "attn_o"}, {"model_type": "llama", "mlp_bias": False}),
        ("Qwen2", {}, {"site": "block", "intervention": "bias"}, {"model_type": "llama", "mlp_bias": True}),
        ("Qwen3", {}, {"site": "attn_q"}, {"attention_bias": True}),
        ("Gemma", {}, {"site": "attn_o"}, {"attention_bias": True}),
        ("Gemma2", {}, {"site": "attn_v"}, {"attention_bias": True}),
        ("Gemma3", {}, {"site": "attn_o", "intervention": "direft"}, {"attention_bias": True}),
        ("GPTNeoX", {}, {"site": "ffn_up"}, {}),
        ("GPTNeoX", {}, {"site": "block", "intervention": "bias"}, {}),
        ("Llama", {}, {"site": "block", "intervention": "bias", "layers": "0,2"}, {"mlp_bias": True}),
        ("Llama", {}, {"site": "ffn_up", "intervention": "bias"}, {"mlp_bias": True, "attention_bias": False}),
        ("Qwen2", {}, {"site": "attn_k", "intervention": "bias"}, {}),
        ("GPTNeoX", {}, {"site": "attn_o", "intervention": "loreft"}, {}),
        ("Llama", {}, {"site": "model.layers.{layer}.mlp.gate_proj"}, {"mlp_bias": True, "attention_bias": False}),
    ],
)
def test_the_merged_checkpoint_is_a_plain_model_with_the_hooked_models_logits(
    tiny_model: Callable[..., PreTrainedModel],
    tmp_path: Path,
    family: str,
    changes: dict[str, object],
    config: dict[str, object],
    switches: dict[str, bool],
) -> None:
    reft_model = randomised(tiny_model(family, **changes), **config)
    merge(reft_model).save_pretrained(tmp_path)
    reft_model.eval()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    if "model_type" not in switches:
        assert type(plain) is type(reft_model.model)
    assert {name: getattr(plain.config, name) for name in switches} == switches
    with torch.no_grad():
        expected, base = reft_model(TOKENS).logits, reft_model.model(TOKENS).logits
        torch.testing.assert_close(plain(TOKENS).logits, expected, rtol=1e-5, atol=1e-5)
    assert (expected - base).abs().max() > 0.05


def test_the_base_keeps_its_weights_and_shares_none_with_the_merged_model(
    tiny_model: Callable[..., PreTrainedModel],
) -> None:
    reft_model = randomised(tiny_model())
    base = reft_model.model
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    merged = merge(reft_model)
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.zero_()
    assert base.config.mlp_bias is False
    assert base.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


def test_weights_keep_the_bases_dtype(tiny_model: Callable[..., PreTrainedModel]) -> None:
    merged = merge(randomised(tiny_model().bfloat16()))
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("Mistral", {"site": "ffn_up"}, "a MistralForCausalLM cannot have a bias at ffn_up.*at no site"),
        ("Qwen3", {"site": "ffn_up"}, "cannot have a bias at ffn_up.*at attn_q, attn_k, attn_v, attn_o$"),
        ("Gemma3", {"site": "ffn_down"}, "cannot have a bias at ffn_down.*at attn_q, attn_k, attn_v, attn_o$"),
        ("Phi3", {"site": "ffn_down"}, "a Phi3ForCausalLM cannot have a bias at ffn_down.*at no site"),
        ("Llama", {"site": "model.layers.{layer}.mlp"}, "only a linear module .*{layer}.mlp is a LlamaMLP"),
        ("Llama", {"site": "block"}, "site block is a sum"),
        ("Gemma2", {"site": "block", "intervention": "bias"}, "a Gemma2ForCausalLM's is not known to, or normalises"),
        ("OPT", {"site": "block", "intervention": "bias"}, "a OPTForCausalLM's is not known to"),
        ("Llama", {"gate": "prompt"}, "the adapter's gate is prompt, which leaves generated tokens alone"),
        ("Llama", {"positions": "generated"}, "acts on generated positions only"),
        ("Llama", {"intervention": "loreft", "act_fn": "relu"}, "the adapter has act_fn relu"),
    ],
)
def test_what_cannot_be_folded_is_refused(
    tiny_model: Callable[..., PreTrainedModel], family: str, config: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        merge(randomised(tiny_model(family), **config))


def test_what_an_intervention_does_counts_not_the_configuration_alone(
    tiny_model: Callable[..., PreTrainedModel],
) -> None:
    reft_model = randomised(tiny_model(), intervention="loreft")
    dict(reft_model.by_layer())[2].set_options("relu", 0.0)
    with pytest.raises(UserError, match="the adapter has act_fn relu"):
        merge(reft_model)


def test_numbers_that_the_dtype_does_not_hold_are_refused(tiny_model: Callable[..., PreTrainedModel]) -> None:
    reft_model = randomised(tiny_model().half())
    with torch.no_grad():
        next(iter(reft_model.interventions.values())).scale.mul_(1e9)
    with pytest.raises(UserError, match=r"merged weights must be finite; .* is not in torch\.float16"):
        merge(reft_model)


def test_a_gate_of_the_prompt_is_folded_on_request(tiny_model: Callable[..., PreTrainedModel]) -> None:
    reft_model = randomised(tiny_model(), gate="prompt")
    with torch.no_grad():
        logits = merge(reft_model, every_token=True)(TOKENS).logits
    torch.testing.assert_close(logits, reft_model(TOKENS).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: state.pop("model.norm.weight"), r"missing_keys.*model\.norm\.weight"),
        (lambda state: state.update(stray=torch.ones(1)), "unexpected_keys.*stray"),
    ],
)
def test_no_weight_is_drawn_at_random_or_left_out(
    tiny_model: Callable[..., PreTrainedModel],
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[dict[str, torch.Tensor]], object],
    message: str,
) -> None:
    reft_model = randomised(tiny_model("Qwen2"), site="attn_q")
    state = reft_model.model.state_dict()
    spoil(state)
    monkeypatch.setattr(reft_model.model, "state_dict", lambda: state)
    with pytest.raises(UserError, match=message):
        merge(reft_model)
