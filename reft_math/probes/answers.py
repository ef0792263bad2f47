"""Collects greedy answers as tokens, which probes cut, continue and score again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from reft_math.commands.resumable import Record
from reft_math.data.problem import Problem
from reft_math.decoding.completions import CompletionSettings, Generate, complete
from reft_math.scoring.evaluate import Score, evaluate


def answer_all(
    problems: Sequence[Problem],
    sources: Mapping[str, Generate],
    decoding: CompletionSettings,
    device: torch.device,
    score: Score,
    folder: Path,
    batch_size: int,
) -> dict[str, list[Record]]:
    """Returns each source's evaluation records, in the order of ``problems``, with ``token_ids``.

    Args:
        problems: Problems to solve.
        sources: ``generate`` by name.
        decoding, device: As in `complete`.
        score: As in `evaluate`.
        folder: Folder of the records, one file per source; finished rows in them are not done again.
        batch_size: Answers per batch.
    """
    return {
        name: evaluate(
            problems,
            partial(complete_with_tokens, generate=generate, decoding=decoding, device=device),
            score,
            folder / f"{name}.jsonl",
            name,
            batch_size=batch_size,
        )
        for name, generate in sources.items()
    }


def complete_with_tokens(
    questions: Sequence[str],
    seed: int | None,
    *,
    generate: Generate,
    decoding: CompletionSettings,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Completes like `complete`, and adds ``token_ids``, the drawn tokens with the end token."""
    drawn: list[list[int]] = []

    def remembering(inputs: torch.Tensor, **kwargs: Any) -> Any:
        output = generate(inputs, **kwargs)
        drawn.extend(output.sequences[:, inputs.shape[1] :].tolist())
        return output

    rows = complete(questions, seed, generate=remembering, decoding=decoding, device=device)
    return [{**row, "token_ids": tokens[: row["num_tokens"]]} for row, tokens in zip(rows, drawn, strict=True)]
