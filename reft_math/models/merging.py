"""An adapter folded into its base's weights: a plain transformers model that is intervened on at every token."""

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

# What configs call their switches for the biases of linears, where they have any.
_SWITCHES = ("mlp_bias", "attention_bias")


@torch.no_grad()
def merge(reft_model: PrefixReftModel, every_token: bool = False) -> PreTrainedModel:
    """``W ← f(W) − f(0)`` column by column and ``β ← f(β)``, of the linear ``Wx + β`` whose output ``f`` edits

    Exact for any affine ``f(h) = Ah + c``: it gives ``AW`` and ``Aβ + c``, for RED ``diag(s)W`` and ``s ⊙ β + b``, for
    a bias ``W`` to the bit and ``β + b``. A bias at ``block``, a sum that the MLP's output enters as it is, is one at
    ``ffn_down``. Computed in float64, kept in the base's dtype. Where the linear has no bias and the architecture's
    config has a switch for one, the switch is set, and the other linears that it concerns get zeros.

    Args:
        reft_model: The base, left as it is, and interventions that act at every token.
        every_token: Fold an adapter whose own gate is ``prompt``, too.

    Returns:
        A new model of the base's class, on the base's device; of a Qwen2, whose linears but three cannot have biases, a
        Llama that computes the same.

    Raises:
        UserError: The adapter cannot be folded, not into this architecture, or into numbers that its dtype holds.
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
        if not isinstance(edit, BiasIntervention):  # there h + b − b would be h but for rounding
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
    """Raises `UserError` for adapters that no model's weights can do the work of.

    One whose gate is ``prompt`` leaves generated tokens alone; it takes ``every_token`` to want them changed.
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
    """The site of a linear whose output is added into the residual stream as it is, behind which a block ends."""
    if "ffn_down" not in sites_of(base) or hasattr(site_module(base, "block", 0), "post_feedforward_layernorm"):
        raise UserError(
            f"a bias at block can be folded in where a block adds up its MLP's output as it is; a"
            f" {type(base).__name__}'s is not known to, or normalises it first"
        )
    return "ffn_down"


def _with_weights(base: PreTrainedModel, config: PretrainedConfig, state: Tensors) -> PreTrainedModel:
    """A model of the base's class; transformers itself would draw weights that are missing."""
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
    """A config with the site's switch set, and zeros for every bias that it brings."""
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
    """The base's config with switches set, and what parameters it then has, without their values."""
    config = copy.deepcopy(base.config)
    for switch in switches:
        setattr(config.get_text_config(), switch, True)
    with torch.device("meta"):
        return config, type(base)(config).state_dict()
