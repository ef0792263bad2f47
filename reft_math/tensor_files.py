"""Parameters of files that anybody may have written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from reft_math.finite import not_finite

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_WEIGHTS = (".safetensors", ".bin")
_PER_BYTE = 8  # parameters, of one bit each


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


@contextmanager
def bounded(folder: Path) -> Iterator[None]:
    """Within it modules may be made for the weights in a folder, as many as its files can hold: 8 parameters a byte.

    Settings may claim any size, and it would be made, module after module, before anybody looks for the weights. A
    folder without weights, and one that is not there, bound nothing: that is for the reader to say.

    Raises:
        ValueError: A module is made beyond that.
    """
    weights = [path for path in folder.glob("*") if path.suffix in _WEIGHTS]
    sizes = [path.stat().st_size for path in weights]
    if not sizes:
        yield
        return
    room = _PER_BYTE * sum(sizes)

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal room
        room -= 0 if parameter is None else parameter.numel()
        if room < 0:
            raise ValueError(f"its settings ask for more parameters than its {sum(sizes):,} bytes of weights can hold")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
