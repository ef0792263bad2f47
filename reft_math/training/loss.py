"""Cross-entropy per sequence."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from reft_math.data.prefix import IGNORE_INDEX


def sequence_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns ``−(1/n_i) Σ_t log p(y_{i,t})`` for each row i over its n_i targets; 0 for a row without targets.

    Args:
        logits: ``(all targets, vocabulary)``, row by row and without padding: in whole solutions up to half the places
            are padding, and logits take most memory. Any float dtype; float64 is kept, others are computed in float32.
        targets: ``(batch, target)`` int64, `IGNORE_INDEX` for no target.

    Returns:
        ``(batch,)``, in nats per token.
    """
    if logits.dtype != torch.float64:
        logits = logits.float()
    is_target = targets != IGNORE_INDEX
    losses = F.cross_entropy(logits, targets[is_target], reduction="none")
    by_row = losses.new_zeros(targets.shape).masked_scatter(is_target, losses)
    return by_row.sum(dim=1) / is_target.sum(dim=1).clamp(min=1)
