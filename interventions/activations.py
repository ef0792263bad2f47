"""Reads hidden states of a base model, pushes them along directions, and measures what an adapter changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedModel

from interventions.hooked import HookedReftModel
from interventions.sites import num_layers, site_module
from reft_math.errors import UserError


@torch.no_grad()
def read_activations(model: PreTrainedModel, rows: Sequence[tuple[Sequence[int], Sequence[int]]], site: str) -> Array:
    """Returns hidden states at the site of every layer, for one batch.

    Args:
        model: The base.
        rows: For each text, its token ids and the indices of the tokens to read.
        site: A name from `interventions.sites`.

    Returns:
        ``(tokens read, layer, width)`` float32, row by row.
    """
    picked: list[torch.Tensor] = []
    row_of = [row for row, (_, wanted) in enumerate(rows) for _ in wanted]
    columns = [token for _, wanted in rows for token in wanted]

    def pick(module: nn.Module, args: Any, output: Any) -> None:
        picked.append(_hidden(output)[row_of, columns].float().cpu())

    with ExitStack() as stack:
        for layer in range(num_layers(model)):
            stack.callback(site_module(model, site, layer).register_forward_hook(pick).remove)
        model(pad_right([token_ids for token_ids, _ in rows], model.device), use_cache=False, logits_to_keep=1)
    return torch.stack(picked, dim=1).numpy()


@contextmanager
def pushing(model: PreTrainedModel, vectors: Mapping[int, torch.Tensor]) -> Iterator[None]:
    """Adds ``v: (batch or 1, 1, hidden size)`` to the output of the given layers at every position."""

    def push(module: nn.Module, args: Any, output: Any, vector: torch.Tensor) -> Any:
        hidden = _hidden(output)
        hidden = hidden + vector.to(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    with ExitStack() as stack:
        for layer, vector in vectors.items():
            hook = partial(push, vector=vector)
            stack.callback(site_module(model, "block", layer).register_forward_hook(hook).remove)
        yield


@torch.no_grad()
def project_changes(
    reft_model: HookedReftModel, input_ids: torch.Tensor, mask: torch.Tensor, directions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ``u_lᵀΔ_l`` and ``‖Δ_l‖``, ``Δ_l = block_l(x; with interventions) − block_l(x; without)``, same ``x``.

    The input ``x`` is what reaches the block in the intervened run, so changes by earlier layers are not counted.
    A change at ``ffn_up`` passes through the MLP's product with its gate and through its down projection, a change
    at ``attn_k`` through the attention from every later position. Below float32 a small difference of large outputs
    is mostly rounding.

    Args:
        reft_model: The base with interventions.
        input_ids: ``(batch, position)``, padded on the right.
        mask: Boolean, same shape; where interventions act.
        directions: ``u: (layer, hidden size)``.

    Returns:
        Projections and norms, each ``(batch, position, layer)`` float32.
    """
    projections: list[torch.Tensor] = []
    norms: list[torch.Tensor] = []
    model = reft_model.model

    def project(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any, direction: torch.Tensor) -> None:
        with reft_model.intervening(None):
            plain = module.forward(*args, **kwargs)  # calling the module would run this hook again
        change = _hidden(output).float() - _hidden(plain).float()
        projections.append(change @ direction.to(change))
        norms.append(change.norm(dim=-1))

    with ExitStack() as stack:
        for layer, direction in enumerate(directions):
            hook = partial(project, direction=direction)
            module = site_module(model, "block", layer)
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        reft_model(input_ids, intervention_mask=mask, use_cache=False, logits_to_keep=1)
    return torch.stack(projections, dim=-1), torch.stack(norms, dim=-1)


def pad_right(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Returns ``(row, longest)``. It needs no attention mask: under causal attention no real token sees the padding."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(device)


def _hidden(output: Any) -> torch.Tensor:
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


Array = npt.NDArray[Any]


def check_states(states: np.ndarray[Any, Any], names: Sequence[str]) -> None:
    """Raises `UserError` if hidden states are NaN or infinite: no probe can read them.

    Args:
        states: ``(row, …)``.
        names: A name for each row.
    """
    is_finite = np.isfinite(states).reshape(len(states), -1).all(axis=1)
    if not is_finite.all():
        name = names[int(is_finite.argmin())]
        raise UserError(
            f"hidden states must be finite; those for {name!r} are NaN or infinite: check the weights, or try"
            " --dtype float32"
        )


@torch.no_grad()
def read_states(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    reft_model: HookedReftModel | None = None,
    acts: torch.Tensor | None = None,
) -> tuple[Array, Array]:
    """Returns hidden states at the last token of each text.

    Args:
        model: The base.
        rows: Token ids of a batch of texts.
        reft_model: The base with interventions; None to read the base alone.
        acts: Boolean ``(text, position)``, true where interventions act.

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
            stack.enter_context(reft_model.intervening(acts))  # before the hooks, so that they see its changes
        for layer in range(num_layers(model)):
            stack.callback(site_module(model, "block", layer).register_forward_hook(pick_output).remove)
            stack.callback(site_module(model, "attn_o", layer).register_forward_pre_hook(pick_input).remove)
        model(pad_right(rows, model.device), use_cache=False, logits_to_keep=1)
    heads = torch.stack(mixed, dim=1).unflatten(-1, (model.config.get_text_config().num_attention_heads, -1))
    return torch.stack(stream, dim=1).numpy(), heads.numpy()
