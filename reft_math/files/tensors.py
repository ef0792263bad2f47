"""Reads parameters from untrusted files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from reft_math.errors import UserError

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def read_parameters(path: Path) -> dict[str, torch.Tensor]:
    """Reads a safetensors file's tensors by name: floating-point numbers, all finite.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds something else; the message is the reason in one line.
    """
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except SafetensorError as error:
        raise ValueError(" ".join(str(error).split())[:200]) from None
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"{name[:100]} must be of floating numbers; it is {tensor.dtype}")
    if bad := not_finite({name: tensor.float() for name, tensor in tensors.items()}):  # as they are used
        raise ValueError(f"{bad[0][:100]} is NaN or infinite: take another checkpoint, or train anew")
    return tensors


def not_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Returns the names of tensors that hold NaN or infinity, in their order."""
    return [name for name, tensor in tensors.items() if not tensor.isfinite().all()]


def check_finite(tensors: Mapping[str, torch.Tensor], source: object) -> None:
    """Raises `UserError` if parameters are NaN or infinite.

    Args:
        tensors: Tensors by name.
        source: Their source, for the message.
    """
    if bad := not_finite(tensors):
        raise UserError(
            f"{source} must hold finite parameters; {bad[0]} is NaN or infinite: take another checkpoint, or train anew"
        )
