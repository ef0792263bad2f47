"""Cross-entropy per sequence."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from reft_math.data.prefix import IGNORE_INDEX


def sequence_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns ``−(1/n_i) Σ_t log p(y_{i,t})`` for each row i over its n_i targets; 0 for a row without targets.

    Args:
        logits: ``(batch, target, vocabulary)``, any float dtype; float64 is kept, others are computed in float32.
        targets: ``(batch, target)`` int64, `IGNORE_INDEX` for no target.

    Returns:
        ``(batch,)``, in nats per token.
    """
    if logits.dtype != torch.float64:
        logits = logits.float()
    # Flat, with the vocabulary last: softmax along another dimension takes five times as long.
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="none")
    return losses.view_as(targets).sum(dim=1) / (targets != IGNORE_INDEX).sum(dim=1).clamp(min=1)
