"""Folds an adapter into its base's weights: a plain transformers model with the intervention at every token."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel

from interventions.bias import BiasIntervention
from interventions.gates import PromptOnly, parse_gate
from interventions.sites import site_module, site_path, sites_of
from interventions.subspace import LINEAR, SubspaceIntervention
from reft_math.errors import UserError
from reft_math.files.tensors import not_finite
from reft_math.models.adapter import PrefixReftModel
from reft_math.models.config import PrefixReftConfig

Tensors = dict[str, torch.Tensor]

# Names of the configs' switches for the biases of linears.
_SWITCHES = ("mlp_bias", "attention_bias")


@torch.no_grad()
def merge(reft_model: PrefixReftModel, every_token: bool = False) -> PreTrainedModel:
    """Sets ``W ← f(W) − f(0)`` column by column and ``β ← f(β)`` in the linear ``Wx + β`` whose output ``f`` edits.

    Exact for any affine ``f(h) = Ah + c``: it gives ``AW`` and ``Aβ + c``, for RED ``diag(s)W`` and ``s ⊙ β + b``, for
    a bias ``W`` to the bit and ``β + b``. A bias at ``block``, a sum to which the MLP's output is added unchanged,
    becomes one at ``ffn_down``. Computed in float64, kept in the base's dtype. If the linear has no bias but the
    architecture's config has a switch for one, the switch is set, and the other linears that it affects get zeros.

    Args:
        reft_model: The base, left unchanged, with interventions that act at every token.
        every_token: Also fold an adapter whose own gate is ``prompt``.

    Returns:
        A new model of the base's class, on the base's device; of a Qwen2, whose linears but three cannot have biases, a
        Llama that computes the same.

    Raises:
        UserError: The adapter cannot be folded, or not into this architecture, or the result overflows the dtype.
    """
    base, site = reft_model.model, reft_model.prefix_config.site
    check_mergeable(reft_model.prefix_config, every_token)
    if site == "block":
        site = _summand(base)
    if getattr(base, "is_quantized", False):
        raise UserError("quantised weights cannot be folded into; load the base in bfloat16 or float32")
    if not isinstance(module := site_module(base, site, 0), nn.Linear):
        raise UserError(f"only a linear module can be folded into; {site} is a {type(module).__name__}")
    if f"{site_path(base, site, 0)}.bias" not in base.state_dict():
        base = _as_llama(base)
    config, state = copy.deepcopy(base.config), {name: tensor.clone() for name, tensor in base.state_dict().items()}
    if f"{site_path(base, site, 0)}.bias" not in state:
        config, zeros = _switch_biases_on(base, site)
        state |= zeros
    for layer, intervention in reft_model.by_layer():
        if isinstance(intervention, SubspaceIntervention):
            _check_affine(intervention.options["act_fn"])
        path, edit = site_path(base, site, layer), copy.deepcopy(intervention).eval()  # without dropout
        weight, bias = state[f"{path}.weight"], state[f"{path}.bias"]
        offset = edit(torch.zeros_like(bias, dtype=torch.float64))
        if not isinstance(edit, BiasIntervention):  # h + b − b would be h only up to rounding
            state[f"{path}.weight"] = (edit(weight.double().T) - offset).T.to(weight.dtype)
        state[f"{path}.bias"] = edit(bias.double()).to(bias.dtype)
    if bad := not_finite(state):
        raise UserError(
            f"merged weights must be finite; {bad[0]} is not in {base.dtype}: fold into a base of another --dtype"
        )
    merged = _with_weights(base, config, state)
    merged.generation_config = copy.deepcopy(reft_model.model.generation_config)
    return merged.eval().to(base.device)


def check_mergeable(config: PrefixReftConfig, every_token: bool = False) -> None:
    """Raises `UserError` for adapters that cannot be folded into any model's weights.

    An adapter whose gate is ``prompt`` does not act on generated tokens; ``every_token`` permits to change them.
    """
    if config.positions != "all":
        raise UserError(f"weights act at every token; the adapter acts on {config.positions} positions only")
    if isinstance(parse_gate(config.gate), PromptOnly) and not every_token:
        raise UserError(
            "weights act at every token, and the adapter's gate is prompt, which leaves generated tokens alone;"
            " --every-token (from Python every_token=True) folds it all the same"
        )
    if config.site == "block" and config.intervention != "bias":
        raise UserError(
            "site block is a sum, the output of no linear module, so nothing there but a bias can be folded into one"
        )
    _check_affine(config.act_fn or LINEAR)


def _summand(base: PreTrainedModel) -> str:
    """Returns the site of a linear whose output is added unchanged to the residual stream at the end of a block."""
    if "ffn_down" not in sites_of(base) or hasattr(site_module(base, "block", 0), "post_feedforward_layernorm"):
        raise UserError(
            f"a bias at block can be folded in where a block adds up its MLP's output as it is; a"
            f" {type(base).__name__}'s is not known to, or normalises it first"
        )
    return "ffn_down"


def _with_weights(base: PreTrainedModel, config: PretrainedConfig, state: Tensors) -> PreTrainedModel:
    """Returns a model of the base's class; refuses missing weights, which transformers would draw at random."""
    model, found = type(base).from_pretrained(
        None, config=config, state_dict=state, dtype=base.dtype, output_loading_info=True
    )
    if lost := {kind: names for kind, names in found.items() if names}:
        raise UserError(f"a {type(base).__name__} cannot be made of the base's weights as they are named: {lost}")
    return model  # type: ignore[no-any-return]


def _check_affine(act_fn: str) -> None:
    if act_fn != LINEAR:
        raise UserError(f"only affine interventions can be folded into weights; the adapter has act_fn {act_fn}")


def _as_llama(base: PreTrainedModel) -> PreTrainedModel:
    """A Qwen2 without sliding windows as the Llama it is, with biases in attention; any other base as it is."""
    if base.config.model_type != "qwen2" or base.config.use_sliding_window:
        return base
    own = base.config.to_dict()
    same = {name: own[name] for name in LlamaConfig().to_dict() if name in own} | {"attention_bias": True}
    config = LlamaConfig(**{name: value for name, value in same.items() if name not in ("model_type", "architectures")})
    state = dict(base.state_dict())
    for layer in range(config.num_hidden_layers):
        state[f"model.layers.{layer}.self_attn.o_proj.bias"] = torch.zeros(
            config.hidden_size, dtype=base.dtype, device=base.device
        )
    llama = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=state, dtype=base.dtype)
    return llama.eval().to(base.device)  # type: ignore[no-any-return]


def _switch_biases_on(base: PreTrainedModel, site: str) -> tuple[PretrainedConfig, Tensors]:
    """Returns a config with the site's switch set, and zeros for every bias that it adds."""
    bias = f"{site_path(base, site, 0)}.bias"
    for switch in _SWITCHES:
        config, parameters = _architecture(base, switch)
        if bias in parameters:
            break
    else:
        names = _architecture(base, *_SWITCHES)[1]
        can = [name for name in sites_of(base) if f"{site_path(base, name, 0)}.bias" in names]
        raise UserError(
            f"a {type(base).__name__} cannot have a bias at {site}, which the adapter needs;"
            f" adapters that can be folded into it are those at {', '.join(can) or 'no site'}"
        )
    missing = parameters.keys() - base.state_dict().keys()
    zeros = {
        name: torch.zeros(parameters[name].shape, dtype=base.dtype, device=base.device) for name in sorted(missing)
    }
    return config, zeros


def _architecture(base: PreTrainedModel, *switches: str) -> tuple[PretrainedConfig, Tensors]:
    """Returns the base's config with switches set, and the parameters it then has, without their values."""
    config = copy.deepcopy(base.config)
    for switch in switches:
        setattr(config.get_text_config(), switch, True)
    with torch.device("meta"):
        return config, type(base)(config).state_dict()
