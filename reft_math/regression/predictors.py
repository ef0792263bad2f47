"""Predicts one number from probabilities over a grid, or from samples.

Everywhere ``log_probs`` is ``log p(str(y)|x)``, ``(batch, numbers)`` of any float dtype, and ``values`` is y,
``(numbers,)``. Results are ``(batch,)``, float32, or float64 where the log-probabilities are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from reft_math.errors import UserError


def widen(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the tensor in float32; float64 stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def normalise(log_probs: torch.Tensor) -> torch.Tensor:
    """Returns ``log p(str(y)|x) − log Σ_{y'} p(str(y')|x)``, also if every p underflows."""
    return widen(log_probs).log_softmax(dim=-1)


def rail(log_probs: torch.Tensor, values: torch.Tensor, normalised: bool = False) -> torch.Tensor:
    """Returns ``Σ_y p(str(y)|x)·y``, the minimiser of the expected squared error.

    Args:
        log_probs, values: See the module. Weights in place of the values make it learnable RAFT's predictor.
        normalised: Divide by ``Σ_y p(str(y)|x)``. A grid of one number then predicts that number whatever the model.

    Source: Lukasik et al., Better autoregressive regression with LLMs via regression-aware fine-tuning, eq. 5.
    """
    log_probs = normalise(log_probs) if normalised else widen(log_probs)
    return (log_probs.exp() * values.to(log_probs)).sum(dim=-1)


def mode(log_probs: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Returns ``argmax_y p(str(y)|x)``, the minimiser of the expected 0-1 error; among ties the grid's first."""
    log_probs = widen(log_probs)
    return values.to(log_probs)[log_probs.argmax(dim=-1)]


def median(log_probs: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Returns the least y with ``Σ_{y' ≤ y} p(str(y')|x) ≥ ½ Σ_{y'} p(str(y')|x)``, minimising the expected |error|."""
    ascending, order = values.sort()
    below = normalise(log_probs)[..., order].exp().cumsum(dim=-1)
    return ascending.to(below)[(below < 0.5).sum(dim=-1)]


def entropy(log_probs: torch.Tensor) -> torch.Tensor:
    """Returns ``−Σ_y q(y) log q(y)`` in nats, q the probabilities normalised over the grid."""
    terms: torch.Tensor = torch.special.entr(normalise(log_probs).exp())
    return terms.sum(dim=-1)


def parse_number(text: str, default: float = 0.0) -> float:
    """Returns ``float(text)``, or the default if that is not a finite number ("banana", "nan", "3 stars")."""
    try:
        value = float(text)
    except ValueError:
        return default
    return value if math.isfinite(value) else default


def rail_from_samples(samples: Sequence[str], default: float = 0.0) -> float:
    """Returns ``(1/n) Σ_i float(z_i)`` over n completions of one prompt, drawn at temperature 1.

    Args:
        samples: The completions' texts.
        default: Value of a completion that is not a number.

    Raises:
        UserError: There are no samples.
    """
    if not samples:
        raise UserError("a mean of samples needs at least one sample; got none")
    return math.fsum(parse_number(sample, default) for sample in samples) / len(samples)
