"""Measures the size of an edit relative to the activations that it edits.

A norm at a site has the units of the site's activations, which can be arbitrary: ``(c·W_up, W_down/c)`` is the same
model for every c. Only the share of ``‖h‖`` can be compared between models.

A layer's ``‖h‖`` is the median over tokens. The mean would be that of attention sinks: after layer 7 of
Qwen2.5-Coder-0.5B the first token's norm is 2,266, the median 18, and the mean of a short prompt 111.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from interventions.activations import pad_right
from interventions.sites import site_module
from reft_math.models.adapter import PrefixReftModel

# Number of texts on which sizes are measured, and number read at once.
TEXTS, _BATCH = 64, 16
Sizes = dict[str, float | None]


def part_norms(
    hidden: torch.Tensor, edited: torch.Tensor, bias: torch.Tensor, scale: torch.Tensor | None
) -> torch.Tensor:
    """Returns ``‖h‖, ‖b‖, ‖(s − 1) ⊙ h‖, ‖f(h) − h‖`` of every token, in float64.

    Args:
        hidden, edited: ``h, f(h): (token, width)``.
        bias: ``b``, of any width.
        scale: ``s: (width,)``; None for an edit without a scale, whose third norm is 0.

    Returns:
        ``(4, token)``
    """
    hidden = hidden.double()
    scaled = torch.zeros_like(hidden) if scale is None else (scale.double() - 1) * hidden
    rows = (hidden, bias.double().expand(len(hidden), -1), scaled, edited.double() - hidden)
    return torch.stack([row.norm(dim=-1) for row in rows])


@torch.no_grad()
def relative_size(reft_model: PrefixReftModel, texts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Returns sizes by layer (medians over tokens), and of their means over layers, on the base's activations of texts.

    Args:
        reft_model: The base with interventions, which are applied to the base's own activations.
        texts: Token ids of each text.

    Returns:
        ``layers`` and ``mean``, with ``activation``, ‖h‖, and as shares of it ``bias``, ``scale`` (None without scales)
        and ``edit``, that is ‖b‖, ‖(s − 1) ⊙ h‖ and ‖f(h) − h‖; the number of ``tokens``.
    """
    model, interventions = reft_model.model, dict(reft_model.by_layer())
    scales = reft_model.scales()
    norms: dict[int, list[torch.Tensor]] = {layer: [] for layer in interventions}

    def add(module: nn.Module, args: Any, output: Any, layer: int, is_token: torch.Tensor) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden[is_token.to(hidden.device)].float()
        edited = interventions[layer](hidden)
        norms[layer].append(part_norms(hidden, edited, interventions[layer].bias, scales.get(layer)).cpu())

    for first in range(0, len(texts), _BATCH):
        batch = texts[first : first + _BATCH]
        lengths = torch.tensor([len(text) for text in batch])
        is_token = torch.arange(int(lengths.max())) < lengths[:, None]
        with ExitStack() as stack:
            for layer in interventions:
                module = site_module(model, reft_model.prefix_config.site, layer)
                hook = partial(add, layer=layer, is_token=is_token)
                stack.callback(module.register_forward_hook(hook).remove)
            model(pad_right(batch, model.device), use_cache=False, logits_to_keep=1)
    medians = {layer: torch.cat(found, dim=1).quantile(0.5, dim=1) for layer, found in norms.items()}
    layers = [{"layer": layer, **_shares(sizes, bool(scales))} for layer, sizes in medians.items()]
    mean = torch.stack(list(medians.values())).mean(dim=0)
    return {"tokens": sum(map(len, texts)), "mean": _shares(mean, bool(scales)), "layers": layers}


def _shares(norms: torch.Tensor, has_scale: bool) -> Sizes:
    activation, bias, scale, edit = norms.tolist()
    return {
        "activation": activation,
        "bias": bias / activation,
        "scale": scale / activation if has_scale else None,
        "edit": edit / activation,
    }


def size_line(site: str, mean: Sizes) -> str:
    """Formats the line that a run prints."""
    scale = "" if mean["scale"] is None else f", the scale's {mean['scale']:.3g}"
    return (
        f"size of the edit beside {site}'s own activations (norm {mean['activation']:.3g}): {mean['edit']:.3g};"
        f" the bias's part {mean['bias']:.3g}{scale}"
    )
