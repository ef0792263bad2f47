"""The base class of all interventions: one input, and parameters that stay float32 when the model is cast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import pyvene as pv
import torch


class Edit(pv.SourcelessIntervention, pv.TrainableIntervention, pv.DistributedRepresentationIntervention):
    """Maps a representation to one of the same shape and dtype.

    Parameters are at least float32 whatever torch's default dtype is: ``.to(torch.bfloat16)`` and ``.half()``, called
    here or on the model around it, move them between devices and keep their dtype. ``.double()`` makes them float64.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, keep_last_dim=True)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        def apply(tensor: torch.Tensor) -> torch.Tensor:
            applied = fn(tensor)
            is_narrower = tensor.is_floating_point() and applied.itemsize < torch.float32.itemsize
            return tensor.to(applied.device) if is_narrower else applied

        return super()._apply(apply, recurse)  # type: ignore[no-any-return]
