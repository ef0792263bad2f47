"""LoReFT: edit a representation within a learnt low-rank subspace."""

from __future__ import annotations

import torch

from interventions.subspace import SubspaceIntervention


class LoreftIntervention(SubspaceIntervention):
    """``LoReFT(h) = h + Rᵀ(σ(Wh + b) − Rh)``

    Shapes and dtypes as in `SubspaceIntervention`; ``σ(x) = x`` by default.

    Differences from pyreft's class: loading keeps the parameters' dtype, ``σ`` and dropout, and R is computed once per
    call instead of three times. Its norm is ``‖b‖₂ = ‖Rᵀb‖₂``.

    Source: Wu et al., "ReFT: Representation Finetuning for Language Models" (NeurIPS 2024), equation 2.
    """

    def edit(self, hidden: torch.Tensor, rotation: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return target - hidden @ rotation
