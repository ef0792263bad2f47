"""DiReFT: add to a representation within a learnt low-rank subspace."""

from __future__ import annotations

import torch

from interventions.subspace import SubspaceIntervention


class DireftIntervention(SubspaceIntervention):
    """``DiReFT(h) = h + Rᵀσ(Wh + b)``

    Shapes and dtypes as in `SubspaceIntervention`; ``σ(x) = x`` by default. LoReFT without ``−Rh``: what is in the
    subspace already stays. As in pyreft's class, and unlike the paper's, R is orthonormal.

    Source: Wu et al., "ReFT: Representation Finetuning for Language Models" (NeurIPS 2024), section 3.2.
    """

    def edit(self, hidden: torch.Tensor, rotation: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return target
