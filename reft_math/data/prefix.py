"""Prefix training data: a prompt, the first K tokens of its solution, and nothing after them.

A row's input is ``x, y_1 … y_{n-1}`` and its targets are ``y_1 … y_n`` with ``n = min(K, length of the solution with
its end token)``; the logits at the last n input positions predict them, and only there are logits needed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from interventions.positions import Positions, intervention_mask
from reft_math.data.problem import Problem
from reft_math.data.templates import PromptTemplate, encode_prompt, encode_target
from reft_math.errors import UserError

IGNORE_INDEX = -100


class PromptDataset(Dataset[dict[str, Any]]):
    """Rows ``{"id": …, "prompt_ids": [...], "gold": …}``: problems with their answers alone."""

    def __init__(
        self, problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, template: PromptTemplate
    ) -> None:
        self.rows: list[dict[str, Any]] = [
            {
                "id": problem.id,
                "prompt_ids": encode_prompt(template, problem.question, tokenizer),
                "gold": problem.answer,
            }
            for problem in problems
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


class PrefixDataset(Dataset[dict[str, Any]]):
    """Rows ``{"id": …, "prompt_ids": [...], "target_ids": [...]}``.

    Args:
        problems: Problems with solutions.
        tokenizer, template: Turn problems into tokens.
        k: Tokens of each solution to keep; None for all.
        full_fraction: Share of the rows, drawn by ``seed``, that keep the whole solution.
        seed: Seed of the draw for ``full_fraction``.

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
        self.rows: list[dict[str, Any]] = []
        for problem, full in zip(problems, is_full, strict=True):
            if not problem.solution:
                raise UserError(
                    f"training needs worked solutions; {problem.id} has none: choose a data set that has them, or let"
                    " train/solutions.py write them; train/prefix_rl.py needs answers alone"
                )
            target_ids = encode_target(template, problem.question, problem.solution, tokenizer)
            self.rows.append(
                {
                    "id": problem.id,
                    "prompt_ids": encode_prompt(template, problem.question, tokenizer),
                    "target_ids": target_ids if full else target_ids[:k],
                }
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


@dataclass(frozen=True)
class PrefixCollator:
    """Packs rows into a batch of lines, several rows per line.

    The positions of each row start from 0, by which transformers tells rows on a line apart: no row attends to another
    (`reft_math.training.packing.keeps_packed_rows_apart` tests a model for this), given ``use_cache=False``; with a
    cache a line is one row. Padding, at the ends of lines, needs no mask under causal attention.

    Attributes:
        pad_token_id: Padding token; never a target, and no token attends to it.
        positions: Where interventions act. ``intervention_mask`` is left out for None (no interventions) and ``all``
            (all positions).
        pack: False puts every row on its own line and leaves ``position_ids`` to the model.

    Returns:
        ``input_ids, position_ids: (line, column)`` int64; ``targets: (row, target)`` int64, padded on the right with
        ``IGNORE_INDEX``; ``logits_at: (all targets,)`` int64, the place in the flattened lines that predicts each
        target, row by row, without padding; ``intervention_mask: (line, column)`` bool.
    """

    pad_token_id: int
    positions: Positions | None
    pack: bool = True

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        lengths = [len(row["prompt_ids"]) + len(row["target_ids"][:-1]) for row in rows]
        lines = pack_lines(lengths) if self.pack else [[row] for row in range(len(rows))]
        width = _width(lines, lengths)
        input_ids = torch.full((len(lines), width), self.pad_token_id)
        position_ids = torch.zeros_like(input_ids)
        place = torch.full_like(input_ids, -2)  # padding counts as prompt
        targets = [torch.tensor(row["target_ids"], dtype=torch.int64) for row in rows]
        logits_at = [torch.empty(0)] * len(rows)
        for line, members in enumerate(lines):
            column = 0
            for member in members:
                prompt_ids, target_ids = rows[member]["prompt_ids"], rows[member]["target_ids"]
                length = lengths[member]
                first, column = column, column + length
                input_ids[line, first:column] = torch.tensor([*prompt_ids, *target_ids[:-1]])
                position_ids[line, first:column] = torch.arange(length)
                place[line, first:column] = torch.arange(length) - len(prompt_ids)
                last = line * width + column
                logits_at[member] = torch.arange(last - len(target_ids), last)
        batch = {
            "input_ids": input_ids,
            **({"position_ids": position_ids} if self.pack else {}),
            "targets": pad_sequence(targets, batch_first=True, padding_value=IGNORE_INDEX),
            "logits_at": torch.cat(logits_at),
        }
        if self.positions not in (None, "all"):
            batch["intervention_mask"] = intervention_mask(place, self.positions)
        return batch


def pack_lines(lengths: Sequence[int]) -> list[list[int]]:
    """Assigns rows to lines with the least ``lines · longest line``, no line much longer than the two longest rows.

    For each number of lines it places the longest row first, each on the shortest line so far. Fewer, longer lines
    would waste less padding but cost more attention, which grows with the square of a line's length.
    """
    fewest = math.ceil(sum(lengths) / (2 * max(1, *lengths)))
    choices = [_share_out(lengths, number) for number in range(len(lengths), max(1, fewest) - 1, -1)]
    return min(choices, key=lambda lines: len(lines) * _width(lines, lengths))


def _share_out(lengths: Sequence[int], number: int) -> list[list[int]]:
    lines: list[list[int]] = [[] for _ in range(number)]
    filled = [0] * number
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        line = filled.index(min(filled))
        lines[line].append(row)
        filled[line] += lengths[row]
    return lines


def _width(lines: Sequence[Sequence[int]], lengths: Sequence[int]) -> int:
    """Returns the length of the longest line; a model reads at least one token."""
    return max(1, *(sum(lengths[row] for row in line) for line in lines))


def pad_left(rows: Sequence[torch.Tensor], value: int | bool) -> torch.Tensor:
    """Joins ``(length,)`` tensors into one ``(row, longest)``."""
    return pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side="left")
