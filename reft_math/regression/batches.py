"""Encodes rows of text with a number as tokens, in batches padded on the left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from reft_math.data.regression_rows import RegressionRow
from reft_math.data.templates import PromptTemplate, encode_prompt


def encode_rows(
    rows: Sequence[RegressionRow], tokenizer: PreTrainedTokenizerBase, template: PromptTemplate
) -> list[dict[str, Any]]:
    """Returns ``{"id": …, "prompt_ids": [...], "target": y*}`` for every row."""
    return [
        {"id": row.id, "prompt_ids": encode_prompt(template, row.text, tokenizer), "target": row.target} for row in rows
    ]


@dataclass(frozen=True)
class RegressionCollator:
    """Collates ``input_ids, attention_mask: (batch, L)`` int64, padded left, and ``targets: (batch,)`` float32."""

    pad_token_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        prompts = [row["prompt_ids"] for row in rows]
        length = max(map(len, prompts))
        padding = [length - len(prompt) for prompt in prompts]
        return {
            "input_ids": torch.tensor(
                [[self.pad_token_id] * pads + prompt for pads, prompt in zip(padding, prompts, strict=True)]
            ),
            "attention_mask": torch.tensor([[0] * pads + [1] * (length - pads) for pads in padding]),
            "targets": torch.tensor([row["target"] for row in rows], dtype=torch.float32),
        }
