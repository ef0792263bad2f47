"""Rows that share lines: logits of chosen places only, and a check that rows do not see each other."""

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
    """Within it the output layer reads the hidden states at ``places`` alone.

    A vocabulary is wide: for prompts of 70 tokens and 10 targets, logits of all places would be most of a step.

    Args:
        model: Has ``get_output_embeddings``.
        places: ``(row, target)`` int64, into the flattened ``(line, column)``; the shape of the logits but for the
            vocabulary.
    """

    def pick(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        hidden = args[0].flatten(0, 1)
        return (hidden[places.to(hidden.device)],)  # a base on several devices has its output layer on another

    handle = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def keeps_packed_rows_apart(model: PreTrainedModel) -> bool:
    """Whether a row behind another one on a line, its positions from 0 again, is as it is on its own.

    transformers keeps such rows apart in every model that makes its masks as Llama does. One that does not would let a
    row read its neighbour, and no loss would say so: hence this trial, three passes over a few tokens. Other tokens in
    the neighbour must change nothing to the last bit, the neighbour's absence nothing but rounding.
    """
    device, vocabulary = running_device(model.get_input_embeddings()), model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    # Two lines: flash attention keeps rows apart on a single one only.
    before, other, row = (torch.randint(vocabulary, (2, 6), generator=generator).to(device) for _ in range(3))
    restarting = torch.arange(6, device=device).repeat(2, 2)

    def read(*rows: torch.Tensor) -> torch.Tensor:
        ids = torch.cat(rows, dim=1)
        logits: torch.Tensor = model(input_ids=ids, position_ids=restarting[:, : ids.shape[1]], use_cache=False).logits
        return logits[:, -6:].float()

    alone, behind, behind_other = read(row), read(before, row), read(other, row)
    is_close = (alone - behind).std() <= 0.05 * alone.std()  # half precision rounds by about a hundredth
    return torch.equal(behind, behind_other) and bool(is_close)
