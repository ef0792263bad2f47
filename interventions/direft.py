"""DiReFT: add to a representation within a learnt low-rank subspace."""

from __future__ import annotations

import torch

from interventions.subspace import SubspaceIntervention


class DireftIntervention(SubspaceIntervention):
    """``DiReFT(h) = h + Rᵀσ(Wh + b)``

    Shapes and dtypes as in `SubspaceIntervention`; ``σ(x) = x`` by default. This is LoReFT without ``−Rh``: it keeps
    what the subspace already holds. R is orthonormal as in pyreft's class, unlike in the paper.

    Source: Wu et al., "ReFT: Representation Finetuning for Language Models" (NeurIPS 2024), section 3.2.
    """

    def edit(self, hidden: torch.Tensor, rotation: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return target
