"""Parameters of files that anybody may have written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from reft_math.errors import UserError

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def read_parameters(path: Path) -> dict[str, torch.Tensor]:
    """A safetensors file's tensors by name: floating numbers, all finite.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds something else; the reason in one line.
    """
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except SafetensorError as error:
        raise ValueError(" ".join(str(error).split())[:200]) from None
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"{name[:100]} must be of floating numbers; it is {tensor.dtype}")
    if bad := not_finite({name: tensor.float() for name, tensor in tensors.items()}):  # what they are used as
        raise ValueError(f"{bad[0][:100]} is NaN or infinite: take another checkpoint, or train anew")
    return tensors


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
