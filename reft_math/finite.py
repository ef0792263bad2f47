"""Numbers that are NaN or infinite: which tensor has some, which module made the first, and which row's logits do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from reft_math.errors import UserError


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


def check_logits(logits: torch.Tensor, names: Sequence[str]) -> None:
    """Raises `UserError` where a row's logits have a NaN or +inf, or nothing but −inf: no token is the likeliest.

    Args:
        logits: ``(row, …, vocabulary)``.
        names: What each row is about.
    """
    is_finite = logits.amax(dim=-1).isfinite().reshape(len(names), -1).all(dim=1)
    if not is_finite.all():
        name = names[int(is_finite.int().argmin())]
        raise UserError(
            f"logits must be finite; those for {name!r} are NaN or infinite: check the weights, or try --dtype float32"
        )


@contextmanager
def watching(model: nn.Module) -> Iterator[list[str]]:
    """Within it names of modules whose output is not finite are added to the list, the first to be so first.

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
