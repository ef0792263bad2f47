"""Prefix training data: a prompt, the first K tokens of its solution, and nothing after them.

A row's input is ``x, y_1 … y_{n-1}`` and its targets are ``y_1 … y_n`` with ``n = min(K, length of the solution with
its end token)``; the logits at the last n input positions predict them. Rows are padded on the left, as in decoding,
so the targets of a batch stand in its last columns and only there are logits needed (``logits_to_keep``).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from reft_math.data.positions import Positions, intervention_mask
from reft_math.data.problem import Problem
from reft_math.data.templates import PromptTemplate, encode_prompt, encode_target
from reft_math.errors import UserError

IGNORE_INDEX = -100


class PrefixDataset(Dataset[dict[str, list[int]]]):
    """Rows ``{"prompt_ids": [...], "target_ids": [...]}``.

    Args:
        problems: With solutions.
        tokenizer, template: How they become tokens.
        k: Tokens of each solution to keep; None for all.
        full_fraction: Share of the rows, drawn by ``seed``, that keep the whole solution.
        seed: See ``full_fraction``.

    Raises:
        UserError: A problem without a solution, ``k < 1``, or a fraction outside [0, 1].
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        tokenizer: PreTrainedTokenizerBase,
        template: PromptTemplate,
        k: int | None,
        full_fraction: float = 0.0,
        seed: int = 0,
    ) -> None:
        if k is not None and k < 1:
            raise UserError(f"k, the solution tokens to train on, must be at least 1; got {k}")
        if not 0 <= full_fraction <= 1:
            raise UserError(f"full_fraction must lie in [0, 1]; got {full_fraction}")
        rng = random.Random(seed)
        is_full = [k is None or rng.random() < full_fraction for _ in problems]
        self.rows: list[dict[str, list[int]]] = []
        for problem, full in zip(problems, is_full, strict=True):
            if not problem.solution:
                raise UserError(
                    f"training needs worked solutions; {problem.id} has none: choose a data set that has them"
                )
            target_ids = encode_target(template, problem.question, problem.solution, tokenizer)
            self.rows.append(
                {
                    "prompt_ids": encode_prompt(template, problem.question, tokenizer),
                    "target_ids": target_ids if full else target_ids[:k],
                }
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.rows[index]


@dataclass(frozen=True)
class PrefixCollator:
    """Rows to a batch, padded on the left to the longest row.

    Attributes:
        pad_token_id: Padding; never a target and never attended to.
        positions: Where interventions act; None leaves ``intervention_mask`` out, for models without interventions.

    Returns:
        ``input_ids, attention_mask, position_ids: (batch, position)`` int64; ``targets: (batch, target)`` int64, padded
        on the left with ``IGNORE_INDEX``; ``intervention_mask: (batch, position)`` bool.
    """

    pad_token_id: int
    positions: Positions | None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        inputs = [torch.tensor([*row["prompt_ids"], *row["target_ids"][:-1]]) for row in rows]
        generated = [
            torch.tensor([False] * len(row["prompt_ids"]) + [True] * (len(row["target_ids"]) - 1)) for row in rows
        ]
        attention_mask = pad_left([torch.ones_like(row) for row in inputs], 0)
        batch = {
            "input_ids": pad_left(inputs, self.pad_token_id),
            "attention_mask": attention_mask,
            "position_ids": (attention_mask.cumsum(dim=1) - 1).clamp(min=0),
            "targets": pad_left([torch.tensor(row["target_ids"]) for row in rows], IGNORE_INDEX),
        }
        if self.positions is not None:
            batch["intervention_mask"] = intervention_mask(pad_left(generated, False), self.positions)
        return batch


def pad_left(rows: Sequence[torch.Tensor], value: int | bool) -> torch.Tensor:
    """``(length,)`` tensors to one ``(row, longest)``."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side="left")
