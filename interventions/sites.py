"""Sites name the module whose output is edited, by name or by path.

| site       | representation                | Llama's module     | GPT-NeoX's          | width                       |
| ---------- | ----------------------------- | ------------------ | ------------------- | --------------------------- |
| `ffn_up`   | output of the up projection   | `mlp.up_proj`      | `mlp.dense_h_to_4h` | intermediate size           |
| `ffn_down` | the MLP's output              | `mlp.down_proj`    | `mlp.dense_4h_to_h` | hidden size                 |
| `attn_q`   | queries                       | `self_attn.q_proj` |                     | heads × head size           |
| `attn_k`   | keys                          | `self_attn.k_proj` |                     | key-value heads × head size |
| `attn_v`   | values                        | `self_attn.v_proj` |                     | key-value heads × head size |
| `attn_o`   | the attention's output        | `self_attn.o_proj` | `attention.dense`   | hidden size                 |
| `block`    | the residual stream behind it | the layer itself   | the layer itself    | hidden size                 |

Mistral, Qwen and Gemma name their modules as Llama does. So does Phi-3, but it has only `ffn_down`, `attn_o` and
`block`: one module computes its up and gate projections together, another its queries, keys and values. GPT-NeoX also
computes queries, keys and values in one module. Every other decoder has `block`.

A site can also be the path of any module within the model, with ``{layer}`` for the layer's number, such as
``model.layers.{layer}.mlp.gate_up_proj``.

`register_sites` gives pyvene the names: a folder saved here loads with plain ``pyvene.IntervenableModel.load`` once
``interventions`` is imported. For paths, and for families without names, the folder holds paths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import pyvene as pv
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from reft_math.errors import UserError

LAYER = "{layer}"  # stands for a layer's number in the path of a module
_LLAMA = {
    "ffn_up": "model.layers.{layer}.mlp.up_proj",
    "ffn_down": "model.layers.{layer}.mlp.down_proj",
    "attn_q": "model.layers.{layer}.self_attn.q_proj",
    "attn_k": "model.layers.{layer}.self_attn.k_proj",
    "attn_v": "model.layers.{layer}.self_attn.v_proj",
    "attn_o": "model.layers.{layer}.self_attn.o_proj",
    "block": "model.layers.{layer}",
}
SITES = tuple(_LLAMA)

_FAMILIES: dict[str, dict[str, str]] = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": _LLAMA,
    "Qwen3ForCausalLM": _LLAMA,
    "GemmaForCausalLM": _LLAMA,
    "Gemma2ForCausalLM": _LLAMA,
    "Gemma3ForCausalLM": _LLAMA,
    "Phi3ForCausalLM": {site: _LLAMA[site] for site in ("ffn_down", "attn_o", "block")},
    "GPTNeoXForCausalLM": {
        "ffn_up": "gpt_neox.layers.{layer}.mlp.dense_h_to_4h",
        "ffn_down": "gpt_neox.layers.{layer}.mlp.dense_4h_to_h",
        "attn_o": "gpt_neox.layers.{layer}.attention.dense",
        "block": "gpt_neox.layers.{layer}",
    },
}


def register_sites() -> None:
    """Adds the site names of every family to pyvene's tables.

    It registers no widths: pyvene's table cannot express "heads × head size", so interventions get theirs from
    `set_interchange_dim`, which pyvene calls on loading with the saved width.
    """
    for family, paths in _FAMILIES.items():
        model_class = getattr(transformers, family)
        modules = pv.type_to_module_mapping.setdefault(model_class, {})
        for site, path in paths.items():
            modules[site] = (path.replace(f".{LAYER}", "[%s]"), pv.models.constants.CONST_OUTPUT_HOOK)
        pv.type_to_dimension_mapping.setdefault(model_class, {})


def num_layers(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().num_hidden_layers)


def sites_of(model: PreTrainedModel) -> Mapping[str, str]:
    """Returns the path of each named site of the model."""
    family = type(model).__name__.removeprefix("FSDP")  # FSDP2 adds this prefix to the class name of a sharded module
    if family in _FAMILIES:
        return _FAMILIES[family]
    stacks = (name for name, module in model.named_modules() if _is_stack(module, num_layers(model)))
    stack = next(stacks, None)  # outermost first; experts lie within
    return {} if stack is None else {"block": f"{stack}.{LAYER}"}


def _is_stack(module: nn.Module, layers: int) -> bool:
    return isinstance(module, nn.ModuleList) and len(module) == layers


def check_site(model: PreTrainedModel, site: str) -> None:
    """Raises `UserError` for a name that the model's family does not have, or a path to no module."""
    if LAYER in site:
        site_module(model, site, 0)
    elif site not in sites_of(model):
        raise UserError(
            f"a {type(model).__name__} has no site {site!r}; it has {', '.join(sites_of(model)) or 'none by name'},"
            f" and in training --site-path takes any module, such as model.layers.{LAYER}.mlp.up_proj"
        )


def site_path(model: PreTrainedModel, site: str, layer: int) -> str:
    """Returns the path within the model of the module whose output is the site's representation."""
    return sites_of(model).get(site, site).replace(LAYER, str(layer))


def site_module(model: PreTrainedModel, site: str, layer: int) -> nn.Module:
    """Returns the module whose output is the site's representation.

    Raises:
        UserError: No module has that path.
    """
    module: nn.Module = model
    path = site_path(model, site, layer)
    parts = path.split(".")
    for depth, part in enumerate(parts):
        children = dict(module.named_children())
        if part not in children:
            found = ".".join(parts[:depth]) or type(model).__name__
            raise UserError(f"the model has no module {path}; {found} has {', '.join(children) or 'none within'}")
        module = children[part]
    return module


def site_device(model: PreTrainedModel, site: str, layer: int) -> torch.device:
    """Returns the device that computes the site: of its module's weights, or of the nearest enclosing module's."""
    path = site_path(model, site, layer)
    while next(model.get_submodule(path).parameters(), None) is None:
        path = path.rpartition(".")[0]
    return running_device(model.get_submodule(path))


def component(model: PreTrainedModel, site: str, layer: int) -> str:
    """Returns the site in pyvene's terms: the name that `register_sites` registered, or the module's path."""
    return site if site in _FAMILIES.get(type(model).__name__, ()) else f"{site_path(model, site, layer)}.output"


def site_at(path: str) -> str | None:
    """Returns the site that is the output of a Llama layer's submodule, such as ``mlp.up_proj``, or None."""
    whole = f"{_LLAMA['block']}.{path}" if path else _LLAMA["block"]
    return next((site for site, known in _LLAMA.items() if known == whole), None)


def site_width(model: PreTrainedModel, site: str, layers: Sequence[int] = (0,)) -> int:
    """Returns the last dimension of the site's representation.

    Raises:
        UserError: A layer has no such representation, or one of another width.
    """
    if site in _FAMILIES.get(type(model).__name__, ()):
        module = site_module(model, site, 0)
        return int(getattr(module, "out_features", model.config.get_text_config().hidden_size))
    widths = _measured_widths(model, site, layers)
    different = set(widths.values())
    if len(different) > 1 or None in different:
        found = ", ".join(f"{width or 'no such tensor'} at layer {layer}" for layer, width in widths.items())
        raise UserError(
            f"a site is a module whose output is a tensor (batch, position, width), or a tuple that begins with one, of"
            f" one width in all layers; {site} has {found}"
        )
    return int(different.pop())  # type: ignore[arg-type]


@torch.no_grad()
def _measured_widths(model: PreTrainedModel, site: str, layers: Sequence[int]) -> dict[int, int | None]:
    """Returns widths of the modules' outputs in a forward pass; None for another shape or a module not called."""
    tokens = torch.zeros(2, 3, dtype=torch.long, device=model.device)
    widths: dict[int, int | None] = dict.fromkeys(layers)

    def note(module: nn.Module, args: Any, output: Any, layer: int) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if isinstance(hidden, torch.Tensor) and hidden.shape[:-1] == tokens.shape:
            widths[layer] = hidden.shape[-1]

    with ExitStack() as stack:
        for layer in layers:
            handle = site_module(model, site, layer).register_forward_hook(partial(note, layer=layer))
            stack.callback(handle.remove)
        # With a cache: without one transformers inspects the positions for packed rows, which is impossible on meta.
        model(tokens, use_cache=True)
    return widths


def parse_layers(layers: str | Sequence[int], total: int) -> tuple[int, ...]:
    """Parses ``all``, layer numbers and inclusive ranges such as ``0,2,8-11``, or a sequence of numbers.

    Raises:
        UserError: Another form, a layer given twice, or a layer outside ``0 … total-1``.
    """
    numbers = _parse_layer_text(layers, total) if isinstance(layers, str) else list(layers)
    outside = [number for number in numbers if not 0 <= number < total]
    if outside:
        raise UserError(f"layers must lie in 0-{total - 1}, the model's decoder layers; got {outside[0]}")
    if not numbers or len(set(numbers)) < len(numbers):
        raise UserError(f"layers must name at least one layer and each once; got {layers!r}")
    return tuple(sorted(numbers))


def _parse_layer_text(text: str, total: int) -> list[int]:
    if text == "all":
        return list(range(total))
    numbers: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            start = int(first)
            numbers += range(start, min(int(last or first), start + total) + 1)  # one too many is enough
    except ValueError:
        raise UserError(f"layers must be 'all' or numbers and ranges such as 0,2,8-11; got {text!r}") from None
    return numbers


def running_device(module: nn.Module) -> torch.device:
    """Returns the device on which the module computes. Between calls offloaded weights lie on no device."""
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)  # accelerate's, alone or in a sequence
        for each in getattr(hook, "hooks", [hook]):
            if getattr(each, "execution_device", None) is not None:
                return torch.device(each.execution_device)
    return next(module.parameters()).device
