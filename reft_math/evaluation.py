"""Greedy completions of problems, scored, recorded one by one, and summarised with an interval."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from reft_math.data.prefix import pad_left
from reft_math.data.problem import Problem
from reft_math.data.templates import PromptTemplate, encode_prompt
from reft_math.scoring.math_equivalence import MathVerifier
from reft_math.scoring.numeric import last_number, score_numeric
from reft_math.scoring.records import RecordFile
from reft_math.scoring.statistics import mcnemar, wilson_interval

Generate = Callable[..., torch.Tensor]
Score = Callable[[Sequence[tuple[str, str]]], list[dict[str, Any]]]
Record = dict[str, Any]


@dataclass(frozen=True)
class Decoding:
    """How completions are made.

    Attributes:
        tokenizer, template: From question to prompt.
        end_token_ids: Every token at which a completion stops.
        max_new_tokens: Where it stops at the latest.
        batch_size: Problems at once.
        opener: Text every completion is made to start with; part of the completion.
    """

    tokenizer: PreTrainedTokenizerBase
    template: PromptTemplate
    end_token_ids: list[int]
    max_new_tokens: int
    batch_size: int
    opener: str = ""


def default_batch_size(dataset: str) -> int:
    """The embedded model takes many at once; a real one fits memory sooner with few."""
    return 100 if dataset == "arithmetic" else 16


def default_max_new_tokens(dataset: str) -> int:
    """Enough for the reference solutions of the set with room to spare."""
    return {"arithmetic": 80, "math500": 1024}.get(dataset, 512)


def complete(
    questions: Sequence[str], generate: Generate, decoding: Decoding, device: torch.device
) -> list[dict[str, Any]]:
    """One batch of completions.

    Returns:
        Per question ``completion`` (text, the opener included), ``num_tokens`` (drawn, the end token included) and
        ``finished`` (false where ``max_new_tokens`` cut it off).
    """
    tokenizer = decoding.tokenizer
    opener_ids = list(tokenizer.encode(decoding.opener, add_special_tokens=False)) if decoding.opener else []
    prompts = [
        torch.tensor(encode_prompt(decoding.template, question, tokenizer) + opener_ids) for question in questions
    ]
    inputs = pad_left(prompts, int(tokenizer.pad_token_id)).to(device)
    sequences = generate(
        inputs,
        attention_mask=pad_left([torch.ones_like(prompt) for prompt in prompts], 0).to(device),
        max_new_tokens=decoding.max_new_tokens,
        eos_token_id=decoding.end_token_ids,
        pad_token_id=tokenizer.pad_token_id,
    )
    return [_completion(row, decoding) for row in sequences[:, inputs.shape[1] :].tolist()]


def _completion(token_ids: list[int], decoding: Decoding) -> dict[str, Any]:
    end = next((index for index, token in enumerate(token_ids) if token in decoding.end_token_ids), None)
    text = decoding.tokenizer.decode(token_ids[:end], skip_special_tokens=True)
    drawn = len(token_ids) if end is None else end + 1
    return {"completion": decoding.opener + text, "num_tokens": drawn, "finished": end is not None}


def evaluate(
    problems: Sequence[Problem],
    generate: Generate,
    decoding: Decoding,
    score: Score,
    records_path: Path,
    device: torch.device,
    name: str,
) -> list[Record]:
    """Completes and scores every problem that has no record yet.

    Args:
        problems: What to solve.
        generate: ``generate(inputs, attention_mask=…, **settings) -> sequences``, such as a model's ``generate``.
        decoding: Prompts and stopping.
        score: From ``(gold, completion)`` pairs to dictionaries with at least ``correct``.
        records_path: JSONL file, appended to batch by batch; finished problems in it are not done again.
        device: The model's.
        name: Shown by the progress bar.

    Returns:
        One record per problem, in the order of ``problems``.
    """
    records = RecordFile(records_path)
    # Longest first: batches hold prompts of like length, and memory runs out at once or never.
    remaining = [problem for problem in problems if problem.id not in records.done]
    remaining.sort(key=lambda problem: -len(problem.question))
    with tqdm(total=len(problems), initial=len(problems) - len(remaining), desc=name, unit="problem") as progress:
        for start in range(0, len(remaining), decoding.batch_size):
            batch = remaining[start : start + decoding.batch_size]
            completions = complete([problem.question for problem in batch], generate, decoding, device)
            pairs = [(problem.answer, done["completion"]) for problem, done in zip(batch, completions, strict=True)]
            records.append(
                {
                    "id": problem.id,
                    "question": problem.question,
                    "gold": problem.answer,
                    "metadata": dict(problem.metadata),
                    **done,
                    **scored,
                }
                for problem, done, scored in zip(batch, completions, score(pairs), strict=True)
            )
            progress.update(len(batch))
    return [records.done[problem.id] for problem in problems]


def is_numeric(dataset: str, problems: Sequence[Problem]) -> bool:
    """Whether answers are compared as numbers: never MATH500's, elsewhere where every one of them is a number."""
    return dataset != "math500" and all(last_number(problem.answer) == problem.answer for problem in problems)


class Scorer(AbstractContextManager["Scorer"]):
    """``(gold, completion)`` pairs to scores: by numbers, or by math-verify in worker processes for other answers.

    Numeric scores hold ``strict`` (the stated answer) and ``flexible`` (the last number); ``correct`` is the latter,
    for a base model has not been told how to state an answer. math-verify's hold ``timed_out`` and ``prediction``.
    """

    def __init__(self, is_numeric: bool) -> None:
        self.is_numeric = is_numeric
        self._stack = ExitStack()
        self._verifier: MathVerifier | None = None

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        if self.is_numeric:
            scores = [score_numeric(completion, gold) for gold, completion in pairs]
            return [{"correct": score["flexible"], **score} for score in scores]
        if self._verifier is None:
            self._verifier = self._stack.enter_context(MathVerifier())
        return [
            {"correct": result.is_correct, "timed_out": result.timed_out, "prediction": result.prediction}
            for result in self._verifier.score(pairs)
        ]

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def summarise(records: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """Counts, accuracy, 95 % Wilson interval, mean length, and the exact McNemar test against ``base``'s records."""
    correct, total = sum(record["correct"] for record in records), len(records)
    low, high = wilson_interval(correct, total)
    summary: dict[str, Any] = {
        "correct": correct,
        "total": total,
        "accuracy": correct / total,
        "interval_95": [low, high],
        "mean_tokens": sum(record["num_tokens"] for record in records) / total,
        "unfinished": sum(not record["finished"] for record in records),
    }
    for name in ("strict", "flexible", "timed_out"):
        if name in records[0]:
            summary[name] = sum(record[name] for record in records)
    if base is not None:
        test = mcnemar([row["correct"] for row in base], [row["correct"] for row in records])
        summary["mcnemar_vs_base"] = {
            "only_base": test.only_first,
            "only_this": test.only_second,
            "p_value": test.p_value,
        }
    return summary


EVALUATION_COLUMNS = ("", "correct", "total", "accuracy", "95 % interval", "strict", "tokens", "p vs base")


def evaluation_rows(summaries: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Table rows for `EVALUATION_COLUMNS`."""
    return [list(_row(name, summary)) for name, summary in summaries.items()]


def _row(name: str, summary: Mapping[str, Any]) -> Iterable[str]:
    low, high = summary["interval_95"]
    test = summary.get("mcnemar_vs_base")
    yield from (name, str(summary["correct"]), str(summary["total"]), f"{summary['accuracy']:.1%}")
    yield f"{low:.1%} - {high:.1%}"
    yield str(summary.get("strict", "-"))
    yield f"{summary['mean_tokens']:.0f}"
    yield "-" if test is None else f"{test['p_value']:.2g}"
