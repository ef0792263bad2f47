"""Hand-off: a source writes the first k tokens of an answer; the base reads them itself and goes on."""

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
    """The first k tokens of a source's answer to a problem, handed to the base.

    Attributes:
        problem: The problem.
        source, base: The source's and the base's own answer, with ``token_ids``.
        k: Number of tokens.
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
        """The outcome if nothing needs to be drawn, else None.

        An answer of at most k tokens is the outcome itself. A prefix that the base wrote too, such as the empty one,
        ends like the base's own answer: greedy decoding would only repeat it.
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
    """Continues ``y_1..y_k`` of the source's answer with the base's greedy tokens, for each problem and k of `LENGTHS`.

    Args:
        problems: The problems.
        source, base: The answers with ``token_ids``, in the order of ``problems``.
        model: The base.
        decoding: Prompts and stopping.
        score: As in `evaluate`.
        records_path, name: As in `record_rows`.
        batch_size: Problems per batch.

    Returns:
        Records ``{id, problem, k, continued, completion, num_tokens, finished, correct}``, by problem and then by k;
        ``continued`` is false if nothing was drawn.
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
    # A problem's rows have equal length and so stay together: a batch reads each problem's prefixes once.
    size = batch_size * len(LENGTHS)
    return record_rows(rows, lambda row: len(row.problem.question), work, records_path, name, size)


def _go_on(
    asked: Sequence[HandedOver], model: PreTrainedModel, decoding: CompletionSettings, score: Score
) -> list[Record]:
    """Completes the rows, those of one problem next to each other, and scores them."""
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
    """Returns ``y_1..y_k`` and the tokens that ``generate`` draws after them, for each row and each of its k.

    The model reads prompts and prefixes once, in one cache; each k continues from a copy of the cache at that point.
    (Cutting the whole cache would be the same, but sliding-window caches cannot be cut.)

    Args:
        model: Model that reads and draws.
        decoding: Settings; ``max_new_tokens`` includes the prefix.
        prompts: Token ids by row.
        prefixes: Tokens after each prompt, more than the row's largest k.
        lengths: Values of k for each row.

    Returns:
        Token ids after the prompt, with padding after an end token; by row, then by k as in ``lengths``.
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
        if read < end - 1:  # generate reads the last token itself
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
    """Returns ids of all problems, of those that ``always_on`` gets wrong, and of those that ``base`` gets wrong.

    Problems chosen by one decoder's mistakes favour every other, whose mistakes lie elsewhere. The gain on the second
    set is partly due to that; the third set makes the same choice by the base, which goes on everywhere.
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
    """Returns accuracy with its 95 % Wilson interval by set of problems, source and k; empty sets have no rows.

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
    """Returns the cells of a printed table for one set of problems: a header, and a line per k, a column per source."""
    rows = [row for row in table if row["problems"] == problems]
    cells = {(row["source"], row["k"]): f"{row['accuracy']:.1%} ({row['low']:.1%}-{row['high']:.1%})" for row in rows}
    sources = list(dict.fromkeys(row["source"] for row in rows))
    return [["k", *sources], *([str(k), *(cells[source, k] for source in sources)] for k in LENGTHS)]
