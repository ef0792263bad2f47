"""Measures the effect of rounding to the base's dtype: noise in the divergence, and partial action of biases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from reft_math.data.problem import Problem
from reft_math.decoding.completions import CompletionSettings, complete
from reft_math.models.adapter import PrefixReftModel
from reft_math.scoring.gate_choice import summarise_noise

ATTENUATION = 1e-3
NUM_PROBLEMS = 16  # for either measurement


@contextmanager
def attenuated(model: PrefixReftModel, factor: float = ATTENUATION) -> Iterator[None]:
    """Replaces every intervention f by ``h + ε·(f(h) − h)``, computed in float32 and rounded once, like f itself.

    Divergence grows with the square of a small edit: a thousandth of the edit gives a millionth of the divergence, and
    anything measured beyond that is rounding. An edit of exactly 0 would leave two equal computations.
    """

    def hook(module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        hidden = args[0].to(torch.promote_types(args[0].dtype, torch.float32))
        edited: torch.Tensor = hidden + factor * (module.forward(hidden) - hidden)
        return edited.to(output.dtype)

    with ExitStack() as stack:
        for _, intervention in model.by_layer():
            stack.callback(intervention.register_forward_hook(hook).remove)
        yield


def noise_floor(
    model: PrefixReftModel, decoding: CompletionSettings, problems: Sequence[Problem], batch_size: int
) -> dict[str, Any]:
    """Returns `summarise_noise` of the `attenuated` adapter on the first `NUM_PROBLEMS` problems, and the ``dtype``."""
    questions = [problem.question for problem in problems[:NUM_PROBLEMS]]
    generate, rows = partial(model.generate, gate="kl:inf"), []
    with attenuated(model):
        for start in range(0, len(questions), batch_size):
            batch = questions[start : start + batch_size]
            rows += complete(batch, None, generate=generate, decoding=decoding, device=model.device)
    return {"dtype": _name(model.model.dtype), **summarise_noise(rows)}


@torch.no_grad()
def acting_bias(model: PrefixReftModel, texts: Sequence[Sequence[int]]) -> dict[str, float]:
    """Returns ``mean_l mean_t ‖e_lt‖₂``, ``e_lt = f_l(h_t) − f_l⁰(h_t)``, f⁰ being f with ``b = 0``, both rounded.

    In exact arithmetic this is the stored ``mean_l ‖b_l‖₂``, for RED and for linear edits in a subspace. In half
    precision a coordinate of b below half the spacing of floats at ``h_t`` is lost, and a larger one becomes a multiple
    of that spacing.

    Args:
        model: The model, in the dtype to measure.
        texts: Token ids of each text; h is read at every token, under the interventions before it.

    Returns:
        ``acting_norm``, and ``rounded_away``, the share of coordinates at which e is 0.
    """
    norms: dict[int, list[torch.Tensor]] = {layer: [] for layer, _ in model.by_layer()}
    unmoved: list[torch.Tensor] = []

    def hook(module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor, layer: int) -> None:
        bias: torch.Tensor = module.bias  # type: ignore[assignment]
        kept = bias.clone()
        bias.zero_()
        edit = (output.double() - module.forward(args[0]).double())[0].cpu()
        bias.copy_(kept)
        norms[layer].append(edit.norm(dim=-1))
        unmoved.append((edit == 0).double().mean(dim=-1))

    with ExitStack() as stack:
        for layer, intervention in model.by_layer():
            stack.callback(intervention.register_forward_hook(partial(hook, layer=layer)).remove)
        stack.enter_context(model.intervening(torch.ones(1, 1, dtype=torch.bool, device=model.device)))
        for text in texts:
            model.model(torch.tensor([text], device=model.device), use_cache=False, logits_to_keep=1)
    means = [torch.cat(found).mean() for found in norms.values()]
    return {"acting_norm": float(torch.stack(means).mean()), "rounded_away": float(torch.cat(unmoved).mean())}


def acting_line(norm: Mapping[str, Any], dtype: torch.dtype) -> str:
    """Returns `acting_bias` and ``target_per_coordinate`` as a sentence."""
    return (
        f"of it {norm['acting_norm']:.4f} acts after rounding to {_name(dtype)}, which leaves"
        f" {norm['rounded_away']:.1%} of the coordinates as they are; target/√width is"
        f" {norm['target_per_coordinate']:.2g}"
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
