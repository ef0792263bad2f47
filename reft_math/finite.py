"""Numbers that are NaN or infinite: which tensor has some, which module made the first, and which row's logits do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import LogitsProcessor

from reft_math.errors import UserError


class NotFiniteLogits(UserError):
    """Logits from which no token can be drawn.

    Attributes:
        row: Whose they are, by its place in the batch.
    """

    def __init__(self, row: int, name: str | None = None) -> None:
        whose = f"row {row}" if name is None else repr(name)
        super().__init__(
            f"logits must be finite; those for {whose} are NaN or infinite: check the weights, or try --dtype float32"
        )
        self.row = row


def not_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The names of those that hold a NaN or an infinity, in their order."""
    return [name for name, tensor in tensors.items() if not tensor.isfinite().all()]


def check_finite(tensors: Mapping[str, torch.Tensor], source: object) -> None:
    """Raises `UserError` where saved parameters are not finite.

    Args:
        tensors: By name.
        source: Where they were read from.
    """
    if bad := not_finite(tensors):
        raise UserError(
            f"{source} must hold finite parameters; {bad[0]} is NaN or infinite: take another checkpoint, or train anew"
        )


def check_logits(logits: torch.Tensor, names: Sequence[str] | None = None) -> None:
    """Raises `NotFiniteLogits` where a row's have a NaN or +inf, or nothing but −inf: no token is the likeliest.

    Args:
        logits: ``(row, …, vocabulary)``.
        names: What each row is about; its number by default.
    """
    is_finite = logits.amax(dim=-1).isfinite().reshape(len(logits), -1).all(dim=1)
    if not is_finite.all():
        row = int(is_finite.int().argmin())
        raise NotFiniteLogits(row, None if names is None else names[row])


def check_states(states: np.ndarray[Any, Any], names: Sequence[str]) -> None:
    """Raises `UserError` where hidden states are NaN or infinite: no probe can read them.

    Args:
        states: ``(row, …)``.
        names: What each row is of.
    """
    is_finite = np.isfinite(states).reshape(len(states), -1).all(axis=1)
    if not is_finite.all():
        name = names[int(is_finite.argmin())]
        raise UserError(
            f"hidden states must be finite; those for {name!r} are NaN or infinite: check the weights, or try"
            " --dtype float32"
        )


class FiniteLogits(LogitsProcessor):  # type: ignore[misc]
    """Changes nothing, and stops at logits from which no token can be drawn: `torch.argmax` would draw a NaN's."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        check_logits(scores)
        return scores


@contextmanager
def watching(model: nn.Module) -> Iterator[list[str]]:
    """Yields a list that collects, in forward order, the names of modules whose output holds a NaN or an infinity.

    A module's own output counts, before hooks that were on it already change it.
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
