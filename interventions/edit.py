"""What all interventions share: one input, and parameters that a cast to half precision passes by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import pyvene as pv
import torch


class Edit(pv.SourcelessIntervention, pv.TrainableIntervention, pv.DistributedRepresentationIntervention):
    """A map of a representation to one of the same shape and dtype.

    Parameters are float32 whatever torch's default dtype is, and never less: ``.to(torch.bfloat16)`` and ``.half()``,
    of the model around it too, move them between devices and leave their dtype. ``.double()`` makes them float64.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, keep_last_dim=True)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        def apply(tensor: torch.Tensor) -> torch.Tensor:
            applied = fn(tensor)
            is_narrower = tensor.is_floating_point() and applied.itemsize < torch.float32.itemsize
            return tensor.to(applied.device) if is_narrower else applied

        return super()._apply(apply, recurse)  # type: ignore[no-any-return]
