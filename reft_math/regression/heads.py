"""Predictive heads: from what a model makes of a prompt to one number, with weights of their own.

| name                     | ŷ                               | starts at                                     |
| ------------------------ | ------------------------------- | --------------------------------------------- |
| `logit`                  | ``b + f_{v*}``                  | b = 0                                         |
| `mean`, `min`, `max`     | ``b + wᵀ pool(ε)``              | w ~ U(±1/√width), b = 0                       |
| `mlp`                    | ``b + vᵀ σ(W f + c)``           | W, c, v uniform by their fan-in, b = 0        |
| `probabilities`          | ``b + wᵀ p``                    | w ~ U(±1/√vocabulary), b = 0                  |
| `raft-grid`              | ``Σ_y w_y p(str(y)|x)``         | w_y = y: RAFT's own predictor                 |
| `raft-all`               | ``Σ_v w_v p_v``                 | w_v = y for the grid's tokens, 0 for others   |

f are the logits at the prompt's last token, p their softmax, ε the hidden states at the prompt's tokens (what the
output embedding is applied to), v* a fixed token, σ the logistic function; pool is over the prompt's tokens, dimension
by dimension. Every head is trained by the squared error. Weights and results are float32 whatever the model's dtype.

Source: Lukasik et al., Better autoregressive regression with LLMs via regression-aware fine-tuning, table 2 and section
4.2, and the works it names there (Fernandes et al. 2023; Zhuang et al. 2023).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

from reft_math.errors import UserError
from reft_math.regression.grid import Grid
from reft_math.regression.predictors import rail
from reft_math.regression.scores import Reading

HeadName = Literal["logit", "mean", "min", "max", "mlp", "probabilities", "raft-grid", "raft-all"]
Pool = Literal["mean", "min", "max"]
HEADS: tuple[HeadName, ...] = get_args(HeadName)
MLP_WIDTH = 64


class Head(nn.Module):
    """``forward(reading)`` gives ŷ, ``(batch,)``.

    Attributes:
        needs_hidden: Whether it reads hidden states.
        needs_grid: Whether it reads a grid's probabilities.
    """

    needs_hidden = False
    needs_grid = False


class FinalTokenLogit(Head):
    """``ŷ = b + f_{v*}``"""

    def __init__(self, token: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))
        self.token = token

    def forward(self, reading: Reading) -> torch.Tensor:
        return self.bias + reading.logits[:, self.token].to(self.bias)


class Pooled(Head):
    """``ŷ = b + wᵀ pool(ε)``, padding left out."""

    needs_hidden = True

    def __init__(self, width: int, pool: Pool) -> None:
        super().__init__()
        self.linear = _linear(width, 1)
        self.pool = pool

    def forward(self, reading: Reading) -> torch.Tensor:
        assert reading.hidden is not None
        hidden, is_token = reading.hidden.to(self.linear.weight), reading.attention_mask.bool()[..., None]
        if self.pool == "mean":
            pooled = hidden.masked_fill(~is_token, 0).sum(dim=1) / is_token.sum(dim=1)
        elif self.pool == "min":
            pooled = hidden.masked_fill(~is_token, torch.inf).amin(dim=1)
        else:
            pooled = hidden.masked_fill(~is_token, -torch.inf).amax(dim=1)
        return self.linear(pooled)[:, 0]  # type: ignore[no-any-return]


class Mlp(Head):
    """``ŷ = b + vᵀ σ(W f + c)``"""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.inner = nn.Linear(vocabulary, MLP_WIDTH)
        self.outer = _linear(MLP_WIDTH, 1)

    def forward(self, reading: Reading) -> torch.Tensor:
        inner = self.inner(reading.logits.to(self.inner.weight)).sigmoid()
        return self.outer(inner)[:, 0]  # type: ignore[no-any-return]


class ProbabilityVector(Head):
    """``ŷ = b + wᵀ p``"""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.linear = _linear(vocabulary, 1)

    def forward(self, reading: Reading) -> torch.Tensor:
        return self.linear(reading.logits.to(self.linear.weight).softmax(dim=-1))[:, 0]  # type: ignore[no-any-return]


class LearnableGrid(Head):
    """``ŷ = Σ_y w_y p(str(y)|x)``, w_y = y at first."""

    needs_grid = True

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(values.float())

    def forward(self, reading: Reading) -> torch.Tensor:
        assert reading.log_probs is not None
        return rail(reading.log_probs, self.weight)


class LearnableVocabulary(Head):
    """``ŷ = Σ_v w_v p_v``, at first w_v = y for the token that writes y and 0 for all others."""

    def __init__(self, vocabulary: int, grid: Grid) -> None:
        super().__init__()
        if any(len(string) != 1 for string in grid.token_ids):
            raise UserError(
                "head raft-all weighs single tokens: it needs a grid whose numbers are one token each; got"
                f" {max(map(len, grid.token_ids))} tokens for one of them. Take head raft-grid, added tokens, or a"
                " template whose prompt ends in white space"
            )
        weight = torch.zeros(vocabulary)
        weight[[string[0] for string in grid.token_ids]] = grid.values.float()
        self.weight = nn.Parameter(weight)

    def forward(self, reading: Reading) -> torch.Tensor:
        return rail(reading.logits.log_softmax(dim=-1, dtype=self.weight.dtype), self.weight)


def make_head(name: HeadName, grid: Grid, vocabulary: int, width: int, token: int) -> Head:
    """A head at its start.

    Args:
        name: One of `HEADS`.
        grid: What the learnable RAFT heads start from.
        vocabulary: Logits at a position.
        width: Of the hidden states.
        token: v*, of the final-token logit.

    Raises:
        UserError: ``raft-all`` for a grid with numbers of several tokens.
    """
    if name == "logit":
        return FinalTokenLogit(token)
    if name == "mean" or name == "min" or name == "max":
        return Pooled(width, name)
    if name == "mlp":
        return Mlp(vocabulary)
    if name == "probabilities":
        return ProbabilityVector(vocabulary)
    return LearnableGrid(grid.values) if name == "raft-grid" else LearnableVocabulary(vocabulary, grid)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear map whose bias starts at 0."""
    linear = nn.Linear(inputs, outputs)
    nn.init.zeros_(linear.bias)
    return linear
