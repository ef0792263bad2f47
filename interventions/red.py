"""RED: edit a representation by an elementwise scale and a bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from interventions.edit import Edit


class RedIntervention(Edit):
    """``RED(h) = s ⊙ h + b``

    ``h: (…, width)`` of any dtype; ``s, b: (width,)``, kept and applied in float32, ``s`` from ones and ``b`` from
    zeros, so that a fresh intervention changes nothing. The result has the dtype of ``h``.

    pyvene constructs it from a `RepresentationConfig`'s fields and ``embed_dim``; if the width is not known yet
    (``embed_dim=None``), `set_interchange_dim` makes the parameters.

    Source: Wu et al., "Advancing Parameter Efficiency in Fine-tuning via Representation Editing" (ACL 2024).
    """

    scale: nn.Parameter
    bias: nn.Parameter

    def __init__(self, *, embed_dim: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if embed_dim is not None:
            self.set_interchange_dim(embed_dim)

    def set_interchange_dim(self, interchange_dim: int | torch.Tensor) -> None:
        super().set_interchange_dim(interchange_dim)
        width = int(interchange_dim)
        self.scale = nn.Parameter(torch.ones(width, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(width, dtype=torch.float32))

    def forward(self, base: torch.Tensor, source: None = None, subspaces: None = None) -> torch.Tensor:
        return (self.scale * base + self.bias).to(base.dtype)  # promoted to the parameters' dtype or wider
