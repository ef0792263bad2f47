"""What a decoder holds in mind once it has written a text: the interventions' reach, and hidden states at its end."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from interventions.activations import pad_right
from interventions.hooked import HookedReftModel
from interventions.sites import num_layers, site_module
from reft_math.data.positions import intervention_mask
from reft_math.decoding.gate import Gate, KLGate, kl_divergence
from reft_math.decoding.pairs import Handoff
from reft_math.probes.number import Array
from reft_math.probes.statements import Text
from reft_math.probes.teacher_forcing import closing


@torch.no_grad()
def read_states(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    reft_model: HookedReftModel | None = None,
    acts: torch.Tensor | None = None,
) -> tuple[Array, Array]:
    """Hidden states at the last token of each text.

    Args:
        model: The base.
        rows: Token ids of a batch of texts.
        reft_model: What intervenes; None for nothing.
        acts: Boolean ``(text, position)``, where it does.

    Returns:
        The residual stream behind each layer, ``(text, layer, hidden size)``, and the heads' outputs as they enter the
        attention's output projection, ``(text, layer, head, head size)``; float32.
    """
    places = list(range(len(rows))), [len(row) - 1 for row in rows]
    stream: list[torch.Tensor] = []
    mixed: list[torch.Tensor] = []

    def pick_output(module: nn.Module, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        stream.append(hidden[places].float().cpu())

    def pick_input(module: nn.Module, args: Any) -> None:
        mixed.append(args[0][places].float().cpu())

    with ExitStack() as stack:
        if reft_model is not None:
            stack.enter_context(reft_model.intervening(acts))  # before the hooks, which then see what it changed
        for layer in range(num_layers(model)):
            stack.callback(site_module(model, "block", layer).register_forward_hook(pick_output).remove)
            stack.callback(site_module(model, "attn_o", layer).register_forward_pre_hook(pick_input).remove)
        model(pad_right(rows, model.device), use_cache=False, logits_to_keep=1)
    heads = torch.stack(mixed, dim=1).unflatten(-1, (model.config.get_text_config().num_attention_heads, -1))
    return torch.stack(stream, dim=1).numpy(), heads.numpy()


@torch.no_grad()
def where_acting(
    reft_model: HookedReftModel, gate: Gate, handoff: Handoff, texts: Sequence[Text]
) -> tuple[torch.Tensor, list[bool]]:
    """Where interventions have acted on what decoding under a gate reads once it has written a text.

    The gate's rule runs along the text, whoever wrote it, up to the token that would follow: with ``C_t`` of this very
    text the gate is open for that token, or it has closed at it or before. While it is open the interventions act
    wherever the adapter's do. Once it is closed, with ``handoff="base"`` they act nowhere: the base has read prompt and
    text itself. With ``"keep"`` they have acted on what was read until the gate closed, but not on the base, which
    draws the token at which a divergence closes it.

    Args:
        reft_model: The base with interventions.
        gate: Any that draws the first tokens from the intervened model.
        handoff: What goes on after it.
        texts: A batch.

    Returns:
        Boolean ``(text, position)``, and for each text whether the gate is open for the next token.
    """
    gate = gate.on(reft_model.model.dtype)
    inputs = _inputs(texts, reft_model.model.device)
    columns = torch.arange(inputs.shape[1], device=inputs.device)
    starts = torch.tensor([len(text.prompt) for text in texts], device=inputs.device)
    answer_columns = columns[None] - starts[:, None]
    acts = intervention_mask(answer_columns >= 0, reft_model.positions)
    divergences = (
        _divergences(reft_model, gate, inputs, acts, texts)
        if isinstance(gate, KLGate)
        else [torch.zeros(len(text.answer) + 1) for text in texts]  # other gates do not ask
    )
    is_open = []
    for row, (text, kl) in enumerate(zip(texts, divergences, strict=True)):
        position, steps = closing(gate, kl)
        is_open.append(position is None)
        if position is None:
            continue
        if handoff == "base" or steps in (0, len(text.answer) + 1):
            acts[row] = False
        else:
            acts[row] &= answer_columns[row] < steps - 1  # the prompt is read at step 0, token j at step j + 1
    return acts, is_open


def _divergences(
    reft_model: HookedReftModel, gate: KLGate, inputs: torch.Tensor, acts: torch.Tensor, texts: Sequence[Text]
) -> list[torch.Tensor]:
    """``D_0..D_n`` along each text of n tokens, ``(n + 1,)``."""
    first = min(len(text.prompt) for text in texts) - 1
    logits = []
    for mask in (acts, torch.zeros_like(acts)):
        with reft_model.intervening(mask):
            logits.append(reft_model.model(inputs, use_cache=False, logits_to_keep=inputs.shape[1] - first).logits)
    found = []
    for row, text in enumerate(texts):
        start = len(text.prompt) - 1 - first
        mod, base = (each[row, start : start + len(text.answer) + 1] for each in logits)
        found.append(kl_divergence(mod, base, gate.direction).cpu())
    return found


def _inputs(texts: Sequence[Text], device: torch.device) -> torch.Tensor:
    return pad_right([text.token_ids for text in texts], device)
