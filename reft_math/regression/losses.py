"""Losses of regression with a language model.

Everywhere ``log_probs`` is ``log p(str(y)|x)``, ``(batch, numbers)`` of any float dtype, ``values`` is y,
``(numbers,)``, and ``targets`` is y*, ``(batch,)``. Losses are float32, or float64 where the first argument is: the
batch's mean, or with ``reduction="none"`` one for each row. ŷ is `rail`, normalised over the grid or not.

| loss                   | formula                             | least, over distributions on the grid, at       |
| ---------------------- | ----------------------------------- | ----------------------------------------------- |
| `raft`                 | ``(ŷ − y*)²``                       | any p with mean E[y*], if the grid reaches it   |
| `mbr`                  | ``Σ_y p(str(y)|x)·(y* − y)²``       | p = 1 at the number nearest to E[y*]            |
| `string_cross_entropy` | ``−log p(str(y*)|x)``               | p = the distribution of y*                      |
| `log_loss`             | ``−y* log p − (1 − y*) log(1 − p)`` | p = E[y*]                                       |

Source: Lukasik et al., Better autoregressive regression with LLMs via regression-aware fine-tuning, lemmas 3 and 4,
equations 8 and 14, table 15.
"""

from __future__ import annotations

from typing import Literal

import torch

from reft_math.errors import UserError
from reft_math.regression.predictors import normalise, rail, widen

Reduction = Literal["mean", "none"]


def squared_error(predictions: torch.Tensor, targets: torch.Tensor, reduction: Reduction = "mean") -> torch.Tensor:
    """Returns ``(ŷ − y*)²`` for predictions by any head, ``(batch,)``.

    Raises:
        ValueError: Predictions and targets differ in shape.
    """
    predictions = widen(predictions)
    return _reduce((predictions - _like(targets, predictions)) ** 2, reduction)


def raft(
    log_probs: torch.Tensor,
    values: torch.Tensor,
    targets: torch.Tensor,
    normalised: bool = False,
    reduction: Reduction = "mean",
) -> torch.Tensor:
    """Returns ``(Σ_y p(str(y)|x)·y − y*)²``; before training it is the squared error of zero-shot RAIL."""
    return squared_error(rail(log_probs, values, normalised), targets, reduction)


def mbr(
    log_probs: torch.Tensor,
    values: torch.Tensor,
    targets: torch.Tensor,
    normalised: bool = False,
    reduction: Reduction = "mean",
) -> torch.Tensor:
    """Returns ``Σ_y p(str(y)|x)·(y* − y)²``; unnormalised, it also falls when probability leaves the grid."""
    log_probs = normalise(log_probs) if normalised else widen(log_probs)
    targets = _like(targets, log_probs[..., 0])
    distances = (targets[..., None] - values.to(log_probs)) ** 2
    return _reduce((log_probs.exp() * distances).sum(dim=-1), reduction)


def string_cross_entropy(
    log_probs: torch.Tensor, values: torch.Tensor, targets: torch.Tensor, reduction: Reduction = "mean"
) -> torch.Tensor:
    """Returns ``−log p(str(y*)|x)``, in nats per number; a target off the grid counts as the nearest number."""
    log_probs = widen(log_probs)
    targets = _like(targets, log_probs[..., 0])
    nearest = (targets[..., None] - values.to(log_probs)).abs().argmin(dim=-1, keepdim=True)
    return _reduce(-log_probs.gather(-1, nearest).squeeze(-1), reduction)


def log_loss(log_p: torch.Tensor, targets: torch.Tensor, reduction: Reduction = "mean") -> torch.Tensor:
    """Returns ``−y* log p − (1 − y*) log(1 − p)``, p the probability of one token that means 1.

    A p that rounds to 1 is held at 1 − eps, so that the loss stays finite.

    Args:
        log_p: ``log p``, ``(batch,)``.
        targets: Scaled to [0, 1].
        reduction: ``mean`` or ``none``, see the module.

    Raises:
        UserError: A target lies outside [0, 1].
        ValueError: The two differ in shape.
    """
    log_p = widen(log_p)
    targets = _like(targets, log_p)
    if not ((targets >= 0) & (targets <= 1)).all():
        raise UserError(
            f"the log loss takes targets between 0 and 1; got {targets.min():g} to {targets.max():g}: rescale them"
        )
    log_not_p = torch.log(-torch.expm1(log_p.clamp(max=-torch.finfo(log_p.dtype).eps)))
    return _reduce(-_weighted(targets, log_p) - _weighted(1 - targets, log_not_p), reduction)


def _weighted(weights: torch.Tensor, logs: torch.Tensor) -> torch.Tensor:
    """Returns ``w · log``, 0 where w is 0, also for log 0."""
    return torch.where(weights > 0, weights * logs, 0)


def _like(targets: torch.Tensor, predictions: torch.Tensor) -> torch.Tensor:
    """Returns the targets in the predictions' dtype; refuses ``(batch, 1)``, which would broadcast to all pairs."""
    if targets.shape != predictions.shape:
        raise ValueError(f"one target for each row: got {tuple(targets.shape)} for {tuple(predictions.shape)}")
    return targets.to(predictions)


def _reduce(rows: torch.Tensor, reduction: Reduction) -> torch.Tensor:
    return rows.mean() if reduction == "mean" else rows
