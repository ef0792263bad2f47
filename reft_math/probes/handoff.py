"""Hand-off: the first k tokens of an answer come from a source, and the base, which reads them itself, goes on."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from reft_math.commands.resumable import Record, record_rows
from reft_math.data.prefix import pad_left
from reft_math.data.problem import Problem
from reft_math.decoding.completions import CompletionSettings
from reft_math.scoring.evaluate import Score
from reft_math.scoring.statistics import wilson_interval

LENGTHS = (0, 1, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class HandedOver:
    """The first k tokens of a source's answer to a problem, and what becomes of them.

    Attributes:
        problem: What was to be solved.
        source, base: The source's and the base's own answer, with ``token_ids``.
        k: How many tokens.
    """

    problem: Problem
    source: Record
    base: Record
    k: int

    @property
    def id(self) -> str:
        return f"{self.problem.id}@{self.k}"

    @property
    def known(self) -> Record | None:
        """The outcome where nothing need be drawn.

        An answer of at most k tokens stands as it is. A prefix that the base wrote too, such as the empty one, ends as
        the base's own answer: greedy decoding would only repeat it.
        """
        if len(self.source["token_ids"]) <= self.k:
            answer = self.source
        elif self.source["token_ids"][: self.k] == self.base["token_ids"][: self.k]:
            answer = self.base
        else:
            return None
        return {name: answer[name] for name in ("completion", "num_tokens", "finished", "correct")}


def hand_over(
    problems: Sequence[Problem],
    source: Sequence[Record],
    base: Sequence[Record],
    model: PreTrainedModel,
    decoding: CompletionSettings,
    score: Score,
    records_path: Path,
    name: str,
    batch_size: int,
) -> list[Record]:
    """``y_1..y_k`` of the source's answer, then the base's greedy tokens, for each problem and each k of `LENGTHS`.

    Args:
        problems: What was to be solved.
        source, base: The answers with ``token_ids``, in the order of ``problems``.
        model: The base.
        decoding: Prompts and stopping.
        score: As in `evaluate`.
        records_path, name: As in `record_rows`.
        batch_size: Problems at once.

    Returns:
        Records ``{id, problem, k, continued, completion, num_tokens, finished, correct}``, by problem and then by k;
        ``continued`` is false where nothing was drawn.
    """

    def work(batch: Sequence[HandedOver], missing: Sequence[HandedOver]) -> list[Record]:
        known = [row.known for row in missing]
        asked = [row for row, outcome in zip(missing, known, strict=True) if outcome is None]
        drawn = iter(_go_on(asked, model, decoding, score))
        return [
            {"problem": row.problem.id, "k": row.k, "continued": outcome is None, **(outcome or next(drawn))}
            for row, outcome in zip(missing, known, strict=True)
        ]

    rows = [HandedOver(*answers, k) for answers in zip(problems, source, base, strict=True) for k in LENGTHS]
    # A problem's rows are equally long and so stay together: a batch reads the prefixes of whole problems, once.
    size = batch_size * len(LENGTHS)
    return record_rows(rows, lambda row: len(row.problem.question), work, records_path, name, size)


def _go_on(
    asked: Sequence[HandedOver], model: PreTrainedModel, decoding: CompletionSettings, score: Score
) -> list[Record]:
    """Completions of the rows, those of one problem next to each other, and whether they are correct."""
    groups = [list(group) for _, group in groupby(asked, key=lambda row: row.problem.id)]
    prompts = decoding.prompts([group[0].problem.question for group in groups])
    prefixes = [group[0].source["token_ids"] for group in groups]
    drawn = continuations(model, decoding, prompts, prefixes, [[row.k for row in group] for group in groups])
    found: list[Record] = [decoding.read(token_ids) for token_ids in drawn]
    scores = score([(row.problem.answer, record["completion"]) for row, record in zip(asked, found, strict=True)])
    return [{**record, "correct": scored["correct"]} for record, scored in zip(found, scores, strict=True)]


@torch.no_grad()
def continuations(
    model: PreTrainedModel,
    decoding: CompletionSettings,
    prompts: Sequence[torch.Tensor],
    prefixes: Sequence[Sequence[int]],
    lengths: Sequence[Collection[int]],
) -> list[list[int]]:
    """``y_1..y_k`` and what ``generate`` draws after them, for each row and each k asked of it.

    The model reads prompts and prefixes once, in one cache; each k goes on from a copy of the cache as it stood there.
    (A cut of the whole one would be the same, but caches of sliding windows cannot be cut.)

    Args:
        model: Reads and draws.
        decoding: Its ``max_new_tokens`` counts the prefix too.
        prompts: Token ids by row.
        prefixes: What follows the prompt; each longer than the largest k asked of it.
        lengths: The k's of each row.

    Returns:
        Token ids after the prompt, padding after an end token included; by row, then by k as in ``lengths``.
    """
    if not prompts:
        return []
    pad_token = int(decoding.tokenizer.pad_token_id)
    cut = [torch.tensor(prefix[: max(ks)]).long() for prefix, ks in zip(prefixes, lengths, strict=True)]
    tokens = torch.cat([pad_left(prompts, pad_token), _pad_right(cut, pad_token)], dim=1).to(model.device)
    masks = [torch.ones_like(prompt) for prompt in prompts], [torch.ones_like(prefix) for prefix in cut]
    mask = torch.cat([pad_left(masks[0], 0), _pad_right(masks[1], 0)], dim=1).to(model.device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    width = tokens.shape[1] - max(map(len, cut))
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    drawn: dict[tuple[int, int], list[int]] = {}
    read = 0
    for k in sorted({k for ks in lengths for k in ks}):
        end = width + k
        if read < end - 1:  # the last token is for generate to read
            columns = slice(read, end - 1)
            model(
                input_ids=tokens[:, columns],
                attention_mask=mask[:, : end - 1],
                position_ids=positions[:, columns],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            read = end - 1
        rows = torch.tensor([row for row, ks in enumerate(lengths) if k in ks], device=model.device)
        cache_at_k = copy.deepcopy(cache)
        cache_at_k.batch_select_indices(rows)
        settings: dict[str, Any] = {**decoding.settings(), "max_new_tokens": decoding.max_new_tokens - k}
        output = model.generate(
            tokens[rows, :end], attention_mask=mask[rows, :end], past_key_values=cache_at_k, **settings
        )
        for row, sequence in zip(rows.tolist(), output.sequences[:, width:].tolist(), strict=True):
            drawn[row, k] = sequence
    return [drawn[row, k] for row, ks in enumerate(lengths) for k in ks]


def _pad_right(rows: Sequence[torch.Tensor], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def problem_sets(answers: Mapping[str, Sequence[Record]]) -> dict[str, set[str]]:
    """Ids of all problems, of those that ``always_on`` gets wrong, and of those that ``base`` gets wrong.

    Chosen by the mistakes of one decoder, problems flatter every other: it has its own mistakes elsewhere. The gain on
    the second set is partly that; the third makes the same choice by the base, which goes on everywhere.
    """
    wrong = {name: {row["id"] for row in answers[name] if not row["correct"]} for name in ("always_on", "base")}
    everyone = {row["id"] for row in answers["base"]}
    return {
        "all problems": everyone,
        "problems always_on gets wrong": wrong["always_on"],
        "problems base gets wrong": wrong["base"],
    }


def handoff_table(
    sets: Mapping[str, Collection[str]], handed_over: Mapping[str, Sequence[Record]]
) -> list[dict[str, Any]]:
    """Accuracy and its 95 % Wilson interval by set of problems, source and k; a set without problems has no rows.

    Args:
        sets: Ids of problems.
        handed_over: The records of `hand_over` by source.

    Returns:
        Rows ``{problems, source, k, continued, correct, total, accuracy, low, high}``.
    """
    table = []
    for problems, ids in sets.items():
        for source, records in handed_over.items():
            for k in LENGTHS if ids else ():
                rows = [row for row in records if row["k"] == k and row["problem"] in ids]
                continued, correct = (sum(row[name] for row in rows) for name in ("continued", "correct"))
                low, high = wilson_interval(correct, len(rows))
                counts = {"continued": continued, "correct": correct, "total": len(rows)}
                shares = {"accuracy": correct / len(rows), "low": low, "high": high}
                table.append({"problems": problems, "source": source, "k": k, **counts, **shares})
    return table


def handoff_lines(table: Sequence[Mapping[str, Any]], problems: str) -> list[list[str]]:
    """The cells of a printed table for one set of problems: a header, and a line per k with a column per source."""
    rows = [row for row in table if row["problems"] == problems]
    cells = {(row["source"], row["k"]): f"{row['accuracy']:.1%} ({row['low']:.1%}-{row['high']:.1%})" for row in rows}
    sources = list(dict.fromkeys(row["source"] for row in rows))
    return [["k", *sources], *([str(k), *(cells[source, k] for source in sources)] for k in LENGTHS)]
