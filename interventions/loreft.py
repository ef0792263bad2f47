"""LoReFT: edit a representation within a learnt low-rank subspace."""

from __future__ import annotations

from typing import Any

import pyvene as pv
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

DEFAULT_RANK = 4


class _Rotation(nn.Module):
    """Holds ``Rᵀ: (width, rank)``, whose columns a parametrisation keeps orthonormal."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(width, rank)))


class LoreftIntervention(pv.SourcelessIntervention, pv.TrainableIntervention, pv.DistributedRepresentationIntervention):
    """``LoReFT(h) = h + Rᵀ(Wh + b − Rh)``

    ``h: (…, width)`` of any dtype; ``R, W: (rank, width)`` with ``RRᵀ = I``; ``b: (rank,)``. Parameters are kept and
    applied in float32, outside autocast; the result has the dtype of ``h``.

    Departures from pyreft's class: parameters do not come back as bfloat16 after loading, and R is computed once a
    call instead of three times. Its norm is ``‖b‖₂ = ‖Rᵀb‖₂``.

    Source: Wu et al., "ReFT: Representation Finetuning for Language Models" (NeurIPS 2024), equation 2.
    """

    rotate_layer: nn.Module
    learned_source: nn.Linear

    def __init__(self, *, embed_dim: int | None = None, low_rank_dimension: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs, keep_last_dim=True)
        self.rank = low_rank_dimension or DEFAULT_RANK
        if embed_dim is not None:
            self.set_interchange_dim(embed_dim)

    def set_interchange_dim(self, interchange_dim: int | torch.Tensor) -> None:
        super().set_interchange_dim(interchange_dim)
        width = int(interchange_dim)
        # Without trivialisation: its base matrix is (width, width), 64 MB a layer at width 4096.
        self.rotate_layer = parametrizations.orthogonal(_Rotation(width, self.rank), use_trivialization=False)
        self.learned_source = nn.Linear(width, self.rank)

    @property
    def bias(self) -> torch.Tensor:
        return self.learned_source.bias

    def forward(self, base: torch.Tensor, source: None = None, subspaces: None = None) -> torch.Tensor:
        with torch.autocast(base.device.type, enabled=False):
            rotation: torch.Tensor = self.rotate_layer.weight  # type: ignore[assignment]
            dtype = torch.promote_types(base.dtype, rotation.dtype)
            hidden, rotation = base.to(dtype), rotation.to(dtype)
            edited = F.linear(hidden, self.learned_source.weight.to(dtype), self.learned_source.bias.to(dtype))
            return (hidden + (edited - hidden @ rotation) @ rotation.T).to(base.dtype)
