"""Packs several rows into one line: logits at chosen places only, and a check that rows do not see each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from interventions.sites import running_device


@contextmanager
def logits_at(model: Any, places: torch.Tensor) -> Iterator[None]:
    """Lets the output layer read only the hidden states at ``places``.

    A vocabulary is large: for prompts of 70 tokens and 10 targets, logits of all places would take most of a step.

    Args:
        model: A model with ``get_output_embeddings``.
        places: int64 indices, of any shape, into the flattened ``(line, column)``; the logits get this shape and the
            vocabulary.
    """

    def pick(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        hidden = args[0].flatten(0, 1)
        return (hidden[places.to(hidden.device)],)  # the output layer may lie on another device

    handle = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def keeps_packed_rows_apart(model: PreTrainedModel) -> bool:
    """Returns whether a row behind another one on a line, with positions from 0 again, gives the same as alone.

    transformers keeps such rows apart in every model that makes its masks as Llama does. Any other model would let a
    row read its neighbour, unnoticed by the loss: hence this trial, three passes over a few tokens. Other tokens in
    the neighbour must not change a bit, the neighbour's absence may change only rounding.
    """
    device, vocabulary = running_device(model.get_input_embeddings()), model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    # Two lines: flash attention keeps rows apart only in a batch of one line.
    before, other, row = (torch.randint(vocabulary, (2, 6), generator=generator).to(device) for _ in range(3))
    restarting = torch.arange(6, device=device).repeat(2, 2)

    def read(*rows: torch.Tensor) -> torch.Tensor:
        ids = torch.cat(rows, dim=1)
        logits: torch.Tensor = model(input_ids=ids, position_ids=restarting[:, : ids.shape[1]], use_cache=False).logits
        return logits[:, -6:].float()

    alone, behind, behind_other = read(row), read(before, row), read(other, row)
    is_close = (alone - behind).std() <= 0.05 * alone.std()  # half precision rounds by about a hundredth
    return torch.equal(behind, behind_other) and bool(is_close)
