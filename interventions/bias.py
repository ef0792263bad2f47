"""Bias: add a learnt vector to a representation."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from interventions.edit import Edit


class BiasIntervention(Edit):
    """``Bias(h) = h + b``

    ``h: (…, width)`` of any dtype; ``b: (width,)``, kept and added in float32, from zeros, so that a fresh
    intervention changes nothing. The result has the dtype of ``h``. This is RED without its scale; the norm of ``b``
    is the size of the edit.

    pyvene constructs it like `RedIntervention`: the width may be set later, by `set_interchange_dim`.
    """

    bias: nn.Parameter

    def __init__(self, *, embed_dim: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if embed_dim is not None:
            self.set_interchange_dim(embed_dim)

    def set_interchange_dim(self, interchange_dim: int | torch.Tensor) -> None:
        super().set_interchange_dim(interchange_dim)
        self.bias = nn.Parameter(torch.zeros(int(interchange_dim), dtype=torch.float32))

    def forward(self, base: torch.Tensor, source: None = None, subspaces: None = None) -> torch.Tensor:
        return (base + self.bias).to(base.dtype)  # promoted to the bias's dtype or wider
