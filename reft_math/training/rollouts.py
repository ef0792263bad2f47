"""Rewards of prefixes: the base completes each, and the completion is scored.

The base is frozen and decodes greedily, so a prefix has one completion: each different pair of problem and prefix is
completed and scored once in a run, and its record is kept. A resumed run completes none again.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from reft_math.decoding.completions import (
    CompletionSettings,
    Generate,
    continue_by_engine,
    continue_locally,
)
from reft_math.decoding.engine import Engine
from reft_math.errors import Unfinished
from reft_math.files.records import RecordFile
from reft_math.scoring.evaluate import Score

Record = dict[str, Any]


@dataclass(frozen=True)
class Prefix:
    """A problem and the first tokens of a solution."""

    problem: str
    gold: str
    prompt_ids: list[int]
    token_ids: list[int]

    @cached_property
    def id(self) -> str:
        """Names the prefix, also where two files have problems of one name."""
        question = zlib.crc32(f"{self.gold} {self.prompt_ids}".encode())
        return f"{self.problem}:{question:08x}:{'-'.join(map(str, self.token_ids))}"


class Rollouts:
    """Completes prefixes with the base and scores them.

    Args:
        generate: The base's ``generate``.
        settings: Greedy completions: template, ends, greatest number of tokens.
        score: As `scoring.evaluate.Scorer`.
        path: JSONL file of the records.
        batch_size: Completions per batch.
        device: The base's device.
        engine: Server with the base that completes in its place.
    """

    def __init__(
        self,
        generate: Generate,
        settings: CompletionSettings,
        score: Score,
        path: Path,
        batch_size: int,
        device: torch.device,
        engine: Engine | None = None,
    ) -> None:
        self.generate, self.settings, self.score, self.engine = generate, settings, score, engine
        self.batch_size, self.device = batch_size, device
        self.records = RecordFile(path)

    def __call__(self, prefixes: Sequence[Prefix]) -> list[Record]:
        """Returns a record for each prefix: ``completion``, ``num_tokens``, ``finished``, ``correct`` and more.

        Raises:
            Unfinished: The engine stopped; what it completed is recorded.
        """
        new = {prefix.id: prefix for prefix in prefixes if prefix.id not in self.records.done}
        read = {name: self.settings.read(prefix.token_ids) for name, prefix in new.items()}
        self._record(new, {name: row for name, row in read.items() if row["finished"]})
        rest = sorted((new[name] for name, row in read.items() if not row["finished"]), key=_length)
        size = self.batch_size if self.engine is None else max(1, len(rest))
        for start in range(0, len(rest), size):
            self._complete(rest[start : start + size])
        return [self.records.done[prefix.id] for prefix in prefixes]

    def _complete(self, batch: Sequence[Prefix]) -> None:
        prompts, tokens = [row.prompt_ids for row in batch], [row.token_ids for row in batch]
        by_id = {row.id: row for row in batch}
        if self.engine is None:
            names = [row.problem for row in batch]
            whole = continue_locally(prompts, tokens, self.generate, self.settings, self.device, names)
            self._record(by_id, dict(zip(by_id, map(self.settings.read, whole), strict=True)))
            return
        try:
            found = continue_by_engine(prompts, tokens, 0, self.settings, self.engine)
        except Unfinished as stop:
            self._record(by_id, {batch[place].id: row for place, row in stop.done.items()})
            raise
        self._record(by_id, dict(zip(by_id, found, strict=True)))

    def _record(self, prefixes: Mapping[str, Prefix], completions: Mapping[str, Record]) -> None:
        """Scores and records completions by the prefixes' ids."""
        scores = self.score([(prefixes[name].gold, row["completion"]) for name, row in completions.items()])
        self.records.append(
            {
                "id": name,
                "problem": prefixes[name].problem,
                "gold": prefixes[name].gold,
                "prefix_tokens": len(prefixes[name].token_ids),
                **row,
                **scored,
            }
            for (name, row), scored in zip(completions.items(), scores, strict=True)
        )


def _length(prefix: Prefix) -> int:
    return len(prefix.prompt_ids)
