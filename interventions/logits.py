"""Logits that are NaN or infinite: which row has some, and which module made the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import LogitsProcessor

from reft_math.errors import UserError


class NotFiniteLogits(UserError):
    """Raised for logits from which no token can be drawn.

    Attributes:
        row: Index of the row in the batch.
    """

    def __init__(self, row: int, name: str | None = None) -> None:
        whose = f"row {row}" if name is None else repr(name)
        super().__init__(
            f"logits must be finite; those for {whose} are NaN or infinite: check the weights, or try --dtype float32"
        )
        self.row = row


def check_logits(logits: torch.Tensor, names: Sequence[str] | None = None) -> None:
    """Raises `NotFiniteLogits` if a row holds NaN or +inf, or only −inf: then no token is the likeliest.

    Args:
        logits: ``(row, …, vocabulary)``.
        names: A name for each row; its number by default.
    """
    is_finite = logits.amax(dim=-1).isfinite().reshape(len(logits), -1).all(dim=1)
    if not is_finite.all():
        row = int(is_finite.int().argmin())
        raise NotFiniteLogits(row, None if names is None else names[row])


class FiniteLogits(LogitsProcessor):  # type: ignore[misc]
    """Checks logits and changes none: `torch.argmax` would draw the token whose logit is NaN."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        check_logits(scores)
        return scores


@contextmanager
def watching(model: nn.Module) -> Iterator[list[str]]:
    """Yields a list that collects, in forward order, the names of modules whose output holds NaN or infinity.

    It looks at a module's own output, before hooks already set on the module change it.
    """
    found: list[str] = []

    def look(module: nn.Module, args: Any, output: Any, name: str) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, torch.Tensor) and not first.isfinite().all():
            found.append(name)

    with ExitStack() as stack:
        for name, module in model.named_modules():
            handle = module.register_forward_hook(partial(look, name=name), prepend=True)
            stack.callback(handle.remove)
        yield found
