"""Measures the norms of biases over layers and brings them to a target."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def mean_norm(vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns ``mean_l ‖v_l‖₂`` in float32, a scalar with gradient; 0 for no vectors."""
    if not vectors:
        return torch.zeros(())
    norms = [torch.linalg.vector_norm(vector.float()) for vector in vectors]
    return torch.stack([norm.to(norms[0].device) for norm in norms]).mean()  # layers may lie on several devices


@torch.no_grad()
def project_mean_norm(vectors: Sequence[torch.Tensor], target: float) -> None:
    """Scales ``v_l ← v_l · min(1, n*/n)`` in place: all layers by one factor, so that their proportions stay."""
    norm = mean_norm(vectors)
    if norm > target:
        for vector in vectors:
            vector.mul_((target / norm).to(vector.device))


@torch.no_grad()
def remove_directions(vectors: Sequence[torch.Tensor], directions: Sequence[torch.Tensor]) -> None:
    """Sets ``v_l ← v_l − u_l u_lᵀ v_l`` in place, for unit ``u_l: (width,)``; a direction of zeros removes nothing."""
    for vector, direction in zip(vectors, directions, strict=True):
        unit = direction.to(vector)
        vector.sub_(unit * (unit @ vector))
