"""Predictive heads: map a model's outputs for a prompt to one number, with weights of their own.

| name                     | ŷ                               | starts at                                     |
| ------------------------ | ------------------------------- | --------------------------------------------- |
| `logit`                  | ``b + f_{v*}``                  | b = 0                                         |
| `mean`, `min`, `max`     | ``b + wᵀ pool(ε)``              | w ~ U(±1/√width), b = 0                       |
| `mlp`                    | ``b + vᵀ σ(W f + c)``           | W, c, v uniform by their fan-in, b = 0        |
| `probabilities`          | ``b + wᵀ p``                    | w ~ U(±1/√vocabulary), b = 0                  |
| `relish`                 | ``b + vᵀ r₃``, see `Relish`     | as torch draws its layers, b = 0              |
| `raft-grid`              | ``Σ_y w_y p(str(y)|x)``         | w_y = y: RAFT's own predictor                 |
| `raft-all`               | ``Σ_v w_v p_v``                 | w_v = y for the grid's tokens, 0 for others   |

f are the logits at the prompt's last token, p their softmax, ε the hidden states at the prompt's tokens (what the
output embedding is applied to), v* a fixed token, σ the logistic function; pool is over the prompt's tokens, dimension
by dimension. Every head is trained by the squared error; `Regressor.start_at_mean` moves b before. Weights and results
are float32 whatever the model's dtype.

Source: Lukasik et al., Better autoregressive regression with LLMs via regression-aware fine-tuning, table 2 and section
4.2, and the works it names there (Fernandes et al. 2023; Zhuang et al. 2023); RELISH: Su and Lease, arXiv:2604.01206.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

from reft_math.errors import UserError
from reft_math.regression.grid import Grid
from reft_math.regression.predictors import rail
from reft_math.regression.scores import PromptOutputs

HeadName = Literal["logit", "mean", "min", "max", "mlp", "probabilities", "relish", "raft-grid", "raft-all"]
Pool = Literal["mean", "min", "max"]
HEADS: tuple[HeadName, ...] = get_args(HeadName)
MLP_WIDTH = 64
RELISH_WIDTH, RELISH_HEADS, RELISH_BLOCKS = 256, 8, 3


class Head(nn.Module):
    """``forward(reading)`` gives ŷ, ``(batch,)``.

    Attributes:
        needs_hidden: Whether it reads hidden states.
        needs_grid: Whether it reads a grid's probabilities.
    """

    needs_hidden = False
    needs_grid = False

    @property
    def intercept(self) -> nn.Parameter | None:
        """The parameter b, or None."""
        named = dict(self.named_parameters())
        return next((named[name] for name in ("bias", "linear.bias", "outer.bias") if name in named), None)


class FinalTokenLogit(Head):
    """``ŷ = b + f_{v*}``"""

    def __init__(self, token: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))
        self.token = token

    def forward(self, reading: PromptOutputs) -> torch.Tensor:
        return self.bias + reading.logits[:, self.token].to(self.bias)


class Pooled(Head):
    """``ŷ = b + wᵀ pool(ε)``, without padding."""

    needs_hidden = True

    def __init__(self, width: int, pool: Pool) -> None:
        super().__init__()
        self.linear = _linear(width, 1)
        self.pool = pool

    def forward(self, reading: PromptOutputs) -> torch.Tensor:
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

    def forward(self, reading: PromptOutputs) -> torch.Tensor:
        inner = self.inner(reading.logits.to(self.inner.weight)).sigmoid()
        return self.outer(inner)[:, 0]  # type: ignore[no-any-return]


class ProbabilityVector(Head):
    """``ŷ = b + wᵀ p``"""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.linear = _linear(vocabulary, 1)

    def forward(self, reading: PromptOutputs) -> torch.Tensor:
        return self.linear(reading.logits.to(self.linear.weight).softmax(dim=-1))[:, 0]  # type: ignore[no-any-return]


class RelishBlock(nn.Module):
    """``r ← LN(x + F(x))``, ``x = LN(r + A(r, u))``: r attends to u in 8 heads; F has two layers, a GELU between."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(RELISH_WIDTH, RELISH_HEADS, batch_first=True)
        self.inner, self.outer = nn.Linear(RELISH_WIDTH, 4 * RELISH_WIDTH), nn.Linear(4 * RELISH_WIDTH, RELISH_WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(RELISH_WIDTH) for _ in range(2))

    def forward(self, state: torch.Tensor, tokens: torch.Tensor, is_padding: torch.Tensor) -> torch.Tensor:
        update, _ = self.attention(state, tokens, tokens, key_padding_mask=is_padding, need_weights=False)
        state = self.norms[0](state + update)
        return self.norms[1](state + self.outer(nn.functional.gelu(self.inner(state))))  # type: ignore[no-any-return]


class Relish(Head):
    """``ŷ = b + vᵀ r₃``: a learned state r₀, refined three times by attention to ``u_t = P ε_t + c``, without padding.

    Shapes are those of the paper's 3.4 to 3.7 million weights: r and u are 256 wide, each `RelishBlock` has weights of
    its own. The paper trains by the Huber loss, of a width that its abstract and code do not say, and finds the squared
    error, as here, little worse.
    """

    needs_hidden = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, RELISH_WIDTH)
        self.state = nn.Parameter(0.02 * torch.randn(RELISH_WIDTH))
        self.blocks = nn.ModuleList(RelishBlock() for _ in range(RELISH_BLOCKS))
        self.linear = _linear(RELISH_WIDTH, 1)

    def forward(self, reading: PromptOutputs) -> torch.Tensor:
        assert reading.hidden is not None
        is_padding = ~reading.attention_mask.bool()
        tokens = self.projection(reading.hidden.to(self.state).masked_fill(is_padding[..., None], 0))
        state = self.state.expand(len(tokens), 1, -1)
        for block in self.blocks:
            state = block(state, tokens, is_padding)
        return self.linear(state)[:, 0, 0]  # type: ignore[no-any-return]


class LearnableGrid(Head):
    """``ŷ = Σ_y w_y p(str(y)|x)``, w_y = y at first."""

    needs_grid = True

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(values.float())

    def forward(self, reading: PromptOutputs) -> torch.Tensor:
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

    def forward(self, reading: PromptOutputs) -> torch.Tensor:
        return rail(reading.logits.log_softmax(dim=-1, dtype=self.weight.dtype), self.weight)


def make_head(name: HeadName, grid: Grid, vocabulary: int, width: int, token: int) -> Head:
    """Makes an untrained head.

    Args:
        name: One of `HEADS`.
        grid: Grid for the initial weights of the learnable RAFT heads.
        vocabulary: Number of logits at a position.
        width: Width of the hidden states.
        token: Token v* of the final-token logit.

    Raises:
        UserError: The head is ``raft-all``, but the grid has numbers of several tokens.
    """
    if name == "logit":
        return FinalTokenLogit(token)
    if name == "mean" or name == "min" or name == "max":
        return Pooled(width, name)
    if name == "mlp":
        return Mlp(vocabulary)
    if name == "probabilities":
        return ProbabilityVector(vocabulary)
    if name == "relish":
        return Relish(width)
    return LearnableGrid(grid.values) if name == "raft-grid" else LearnableVocabulary(vocabulary, grid)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """Makes a linear map whose bias starts at 0."""
    linear = nn.Linear(inputs, outputs)
    nn.init.zeros_(linear.bias)
    return linear
