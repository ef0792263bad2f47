"""Site names and where they are in a model.

| site       | representation                                   | width                     |
| ---------- | ------------------------------------------------ | ------------------------- |
| `ffn_up`   | output of ``mlp.up_proj``                        | intermediate size         |
| `ffn_down` | output of ``mlp.down_proj``, the MLP's output    | hidden size               |
| `attn_q`   | output of ``self_attn.q_proj``                   | heads × head size         |
| `attn_k`   | output of ``self_attn.k_proj``                   | key-value heads × head size |
| `attn_v`   | output of ``self_attn.v_proj``                   | key-value heads × head size |
| `attn_o`   | output of ``self_attn.o_proj``, the attention's output | hidden size         |
| `block`    | output of the decoder layer, the residual stream | hidden size               |

`register_sites` tells pyvene these names, so that a folder saved here loads with plain
``pyvene.IntervenableModel.load`` once ``interventions`` is imported.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyvene as pv
import transformers
from torch import nn
from transformers import PreTrainedModel

from reft_math.errors import UserError

_WITHIN_LAYER = {
    "ffn_up": ".mlp.up_proj",
    "ffn_down": ".mlp.down_proj",
    "attn_q": ".self_attn.q_proj",
    "attn_k": ".self_attn.k_proj",
    "attn_v": ".self_attn.v_proj",
    "attn_o": ".self_attn.o_proj",
    "block": "",
}
SITES = tuple(_WITHIN_LAYER)

# These families name the modules of a decoder layer alike. A new family: one line, if it does too.
_FAMILIES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
)


def register_sites() -> None:
    """Adds the site names of every family to pyvene's tables.

    No widths are registered: pyvene's table cannot say "heads × head size", so interventions take theirs from
    `set_interchange_dim`, which pyvene calls on loading with the saved width.
    """
    for family in _FAMILIES:
        model_class = getattr(transformers, family)
        modules = pv.type_to_module_mapping.setdefault(model_class, {})
        modules.update(
            {
                site: (f"model.layers[%s]{path}", pv.models.constants.CONST_OUTPUT_HOOK)
                for site, path in _WITHIN_LAYER.items()
            }
        )
        pv.type_to_dimension_mapping.setdefault(model_class, {})


def num_layers(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().num_hidden_layers)


def check_site(model: PreTrainedModel, site: str) -> None:
    """Raises `UserError` for a site or a model family that is not known."""
    if type(model).__name__ not in _FAMILIES:
        raise UserError(f"sites are known for {', '.join(_FAMILIES)}; the model is a {type(model).__name__}")
    if site not in SITES:
        raise UserError(f"the model has no site {site!r}; it has {', '.join(SITES)}")


def site_path(site: str, layer: int) -> str:
    """Within the model, the path of the module whose output is the site's representation."""
    return f"model.layers.{layer}{_WITHIN_LAYER[site]}"


def site_module(model: PreTrainedModel, site: str, layer: int) -> nn.Module:
    """The module whose output is the site's representation."""
    module: nn.Module = model.get_submodule(site_path(site, layer))
    return module


def site_at(path: str) -> str | None:
    """The site that is the output of a layer's submodule, such as ``mlp.up_proj``; None where there is none."""
    within = "." + path if path else ""
    return next((site for site, known in _WITHIN_LAYER.items() if known == within), None)


def site_width(model: PreTrainedModel, site: str) -> int:
    """Last dimension of the site's representation."""
    module = site_module(model, site, 0)
    return int(getattr(module, "out_features", model.config.get_text_config().hidden_size))


def parse_layers(layers: str | Sequence[int], total: int) -> tuple[int, ...]:
    """``all``, or layer numbers and inclusive ranges such as ``0,2,8-11``, or the numbers themselves.

    Raises:
        UserError: Not of that form, a layer twice, or a layer outside ``0 … total-1``.
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
            numbers += range(int(first), int(last or first) + 1)
    except ValueError:
        raise UserError(f"layers must be 'all' or numbers and ranges such as 0,2,8-11; got {text!r}") from None
    return numbers
