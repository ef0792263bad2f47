"""Completes problems, scores and records each completion, and summarises the scores with an interval."""

from __future__ import annotations

import math
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reft_math.commands.processes import process_state
from reft_math.commands.resumable import Record, record_rows
from reft_math.data.problem import Problem
from reft_math.data.templates import without_thoughts
from reft_math.decoding.completions import Complete
from reft_math.errors import Unfinished
from reft_math.files.records import RecordFile, shard_path
from reft_math.files.tables import print_table
from reft_math.scoring.lengths import (
    LENGTH_TITLE,
    difference_cell,
    time_cell,
    tokens_cell,
    tokens_difference,
    tokens_interval,
)
from reft_math.scoring.math_equivalence import MathVerifier
from reft_math.scoring.numeric import last_number, score_numeric
from reft_math.scoring.sampling import majority_vote, pass_at_k
from reft_math.scoring.statistics import mcnemar, mean_interval, wilson_interval

Score = Callable[[Sequence[tuple[str, str]]], list[dict[str, Any]]]


def default_batch_size(dataset: str) -> int:
    """Returns a large batch size for the embedded model, a small one for real models, which need more memory."""
    return 100 if dataset == "arithmetic" else 16


def default_max_new_tokens(dataset: str) -> int:
    """Returns a length that leaves room beyond the set's reference solutions."""
    return {"arithmetic": 80, "math500": 1024}.get(dataset, 512)


class Records(list[Record]):
    """One evaluation's records, in the order of its problems.

    Attributes:
        seconds_per_answer: The evaluation's seconds, over all its processes, per row; None if some rows were already
            done.
    """

    seconds_per_answer: float | None = None


def evaluate(
    problems: Sequence[Problem],
    complete: Complete,
    score: Score,
    records_path: Path,
    name: str,
    *,
    batch_size: int,
    samples: int = 1,
    seed: int | None = None,
) -> Records:
    """Completes and scores every problem that has no record yet, through `record_rows`.

    Args:
        problems: Problems to solve.
        complete: Maps questions and a seed to dictionaries with at least ``completion``, ``num_tokens``, ``finished``.
        score: Maps ``(gold, completion)`` pairs to dictionaries with at least ``correct``.
        records_path: JSONL file; finished rows in it are not done again.
        name: Text of the progress bar.
        batch_size: Completions per batch. A batch is always decoded as a whole, even if a part of it is recorded: a
            resumed run draws and rounds exactly as an undisturbed one.
        samples: Completions per problem.
        seed: Seed of the samples; None for greedy decoding.

    Returns:
        One record per problem and sample, in the order of ``problems``; in every process.

    Raises:
        Unfinished: Raised by ``complete``; its finished completions are scored and recorded.
    """

    def work(batch: Sequence[ProblemSample], missing: Sequence[ProblemSample]) -> list[Record]:
        batch_seed = None if seed is None else zlib.crc32(f"{seed}/{batch[0].id}".encode())
        try:
            completions = complete([row.problem.question for row in batch], batch_seed)
        except Unfinished as stop:
            raise Unfinished(str(stop), finished(batch, missing, stop.done)) from None
        return list(finished(batch, missing, dict(enumerate(completions))).values())

    def finished(
        batch: Sequence[ProblemSample], missing: Sequence[ProblemSample], completions: Mapping[int, Record]
    ) -> dict[str, Record]:
        """Returns records by id of rows of ``missing`` with a completion; completions have their index in ``batch``."""
        found = {batch[place].id: completion for place, completion in completions.items()}
        rows = [row for row in missing if row.id in found]
        scores = score([(row.problem.answer, found[row.id]["completion"]) for row in rows])
        return {row.id: {**row.record(), **found[row.id], **scored} for row, scored in zip(rows, scores, strict=True)}

    rows = [ProblemSample(problem, sample, samples) for problem in problems for sample in range(samples)]
    begun, start = records_path.exists() or shard_path(records_path, 0).exists(), time.monotonic()
    records = Records(record_rows(rows, lambda row: len(row.problem.question), work, records_path, name, batch_size))
    seconds = time.monotonic() - start
    if "strict" in records[0]:
        records = _as_scored_now(records, score, records_path)
    records.seconds_per_answer = None if begun else seconds / len(records)
    return records


def scored_again(records: Sequence[Record], score: Score) -> list[Record]:
    """Rescores records that hold completions.

    An older version always judged the last number, even if an answer was stated before it.
    """
    rows = [record for record in records if "completion" in record]
    scores = score([(record["gold"], record["completion"]) for record in rows])
    found = {record["id"]: scored for record, scored in zip(rows, scores, strict=True)}
    return [{**record, **found.get(record["id"], {})} for record in records]


def _as_scored_now(records: Records, score: Score, path: Path) -> Records:
    """Rescores records of an older version's run that was resumed, also in the file."""
    again = Records(scored_again(records, score))
    changed = [new for new, old in zip(again, records, strict=True) if new != old]
    if changed and process_state().is_main_process:
        RecordFile(path).replace(changed)
        print(f"note: {path}: {len(changed)} of {len(records)} scores were of another version and are made anew")
    return again


@dataclass(frozen=True)
class ProblemSample:
    """One of the ``samples`` completions of a problem."""

    problem: Problem
    sample: int
    samples: int

    @property
    def id(self) -> str:
        return self.problem.id if self.samples == 1 else f"{self.problem.id}#{self.sample}"

    def record(self) -> Record:
        """Returns its record without completion and score."""
        problem = self.problem
        return {
            "id": self.id,
            **({"problem": problem.id} if self.samples > 1 else {}),
            "question": problem.question,
            "gold": problem.answer,
            "metadata": dict(problem.metadata),
        }


def is_numeric(dataset: str, problems: Sequence[Problem]) -> bool:
    """Returns whether answers are compared as numbers: all of them are numbers, and the set is not MATH500."""
    return dataset != "math500" and all(last_number(problem.answer) == problem.answer for problem in problems)


class Scorer(AbstractContextManager["Scorer"]):
    """Scores ``(gold, completion)`` pairs: as numbers, or by math-verify in worker processes.

    Numeric scores are `NumericScore`: ``correct`` by the stated answer, or without one by the last number, since a base
    model is not told how to state an answer; ``strict`` and ``flexible`` by either alone. math-verify's scores hold
    ``correct``, ``unscored``, ``timed_out`` and ``prediction``. Thoughts before an answer are ignored.
    """

    def __init__(self, is_numeric: bool) -> None:
        self.is_numeric = is_numeric
        self._stack = ExitStack()
        self._verifier: MathVerifier | None = None

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        pairs = [(gold, without_thoughts(completion)) for gold, completion in pairs]
        if self.is_numeric:
            return [{**score_numeric(completion, gold)} for gold, completion in pairs]
        if self._verifier is None:
            self._verifier = self._stack.enter_context(MathVerifier())
        return [
            {
                "correct": result.is_correct,
                "unscored": result.unscored,
                "timed_out": result.timed_out,
                "prediction": result.prediction,
            }
            for result in self._verifier.score(pairs)
        ]

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def summarise(records: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """Returns counts, accuracy and mean length with 95 % intervals, and paired tests against ``base``'s records.

    With one completion per problem accuracy's interval is Wilson's. With several, accuracy is pass@1, its interval is
    bootstrapped over problems, ``pass_at_k`` and ``majority`` are added, and there is no test. Against the base: the
    exact McNemar test, and the mean difference in tokens, its interval bootstrapped over problems. ``unscored``
    completions count as wrong. ``mean_absolute_error`` is None without numbers, or if one exceeds a float.
    """
    is_sampled = "problem" in records[0]
    correct, total = sum(record["correct"] for record in records), len(records)
    summary: dict[str, Any] = {
        "correct": correct,
        "total": total,
        "accuracy": correct / total,
        "interval_95": None if is_sampled else list(wilson_interval(correct, total)),
        "mean_tokens": sum(record["num_tokens"] for record in records) / total,
        "tokens_interval_95": tokens_interval(records),
        "unfinished": sum(not record["finished"] for record in records),
    }
    for name in ("strict", "flexible", "unscored", "timed_out"):
        if name in records[0]:
            summary[name] = sum(record[name] for record in records)
    if "last_number" in records[0]:
        answers = [(_answer(row), row["gold"]) for row in records]
        errors = [abs(float(answer) - float(gold)) for answer, gold in answers if answer is not None]
        mean_error = sum(errors) / len(errors) if errors else math.nan
        summary |= {
            "unanswered": total - len(errors),
            "mean_absolute_error": mean_error if math.isfinite(mean_error) else None,
        }
    if is_sampled:
        summary |= _summarise_samples(records)
    elif base is not None:
        test = mcnemar([row["correct"] for row in base], [row["correct"] for row in records])
        summary["mcnemar_vs_base"] = {
            "only_base": test.only_first,
            "only_this": test.only_second,
            "p_value": test.p_value,
        }
        summary["tokens_vs_base"] = tokens_difference(base, records)
    return summary


def _summarise_samples(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    by_problem: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        by_problem[record["problem"]].append(record)
    correct = [[bool(record["correct"]) for record in group] for group in by_problem.values()]
    answers = [[_answer(record) for record in group] for group in by_problem.values()]
    n = len(correct[0])
    powers_of_2 = [2**power for power in range(n.bit_length()) if 2**power < n]
    passes = {k: [pass_at_k(n, sum(group), k) for group in correct] for k in (*powers_of_2, n)}
    votes = [majority_vote(*pair) for pair in zip(answers, correct, strict=True)]
    return {
        "samples": n,
        "interval_95": _mean(passes[1])["interval_95"],
        "pass_at_k": {str(k): _mean(values) for k, values in passes.items()},
        "majority": _mean(votes),
    }


def _answer(record: Mapping[str, Any]) -> str | None:
    """Returns the answer that ``correct`` judges."""
    names = ("stated", "last_number", "prediction")
    return next((record[name] for name in names if record.get(name) is not None), None)


def _mean(values: Sequence[float]) -> dict[str, Any]:
    """Returns the mean over problems and its 95 % interval: bootstrap percentiles, or Wilson's for values 0 and 1.

    The bootstrap of equal values has no width; then the interval is None.
    """
    is_rate = set(values) <= {0.0, 1.0}
    interval = wilson_interval(round(sum(values)), len(values)) if is_rate else mean_interval(values)
    return {"value": float(np.mean(values)), "interval_95": None if interval is None else list(interval)}


EVALUATION_COLUMNS = ("", "correct", "total", "accuracy", "95 % interval", "strict", "flexible", "p vs base")
COST_COLUMNS = ("", "tokens an answer", "against base", "cut off", "time an answer")
SAMPLING_COLUMNS = ("", "estimate", "95 % interval")


def evaluation_rows(summaries: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Returns table rows for `EVALUATION_COLUMNS`."""
    return [list(_row(name, summary)) for name, summary in summaries.items()]


def _row(name: str, summary: Mapping[str, Any]) -> Iterable[str]:
    test = summary.get("mcnemar_vs_base")
    yield from (name, str(summary["correct"]), str(summary["total"]), accuracy_cell(summary))
    yield _interval(summary)
    yield from (str(summary.get(name, "-")) for name in ("strict", "flexible"))
    yield "-" if test is None else f"{test['p_value']:.2g}"


def print_evaluation(title: str, summaries: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints scores and costs as two tables: one would be too wide for a terminal."""
    print_table(title, EVALUATION_COLUMNS, evaluation_rows(summaries))
    print_table(LENGTH_TITLE, COST_COLUMNS, cost_rows(summaries))


def score_tables(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, list[list[str]]]:
    """Returns the tables of ``results.json`` for reports and cards, the header first."""
    tables = {
        "evaluation": [list(EVALUATION_COLUMNS), *evaluation_rows(summaries)],
        LENGTH_TITLE: [list(COST_COLUMNS), *cost_rows(summaries)],
    }
    for name, summary in summaries.items():
        if "pass_at_k" in summary:
            tables[f"evaluation over problems, {name}"] = [list(SAMPLING_COLUMNS), *sampling_rows(summary)]
    return tables


def cost_rows(summaries: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Returns table rows for `COST_COLUMNS`; values that an older version lacks are dashes."""
    return [
        [
            name,
            tokens_cell(summary["mean_tokens"], summary.get("tokens_interval_95")),
            difference_cell(summary.get("tokens_vs_base")),
            str(summary.get("unfinished", "-")),
            time_cell(summary.get("seconds_per_answer")),
        ]
        for name, summary in summaries.items()
    ]


def accuracy_cell(summary: Mapping[str, Any]) -> str:
    """Returns text such as ``12.5%``, or ``12.5% (2 unscored)`` if some could not be judged and so count as wrong."""
    unscored = summary.get("unscored", 0)
    return f"{summary['accuracy']:.1%}" + (f" ({unscored} unscored)" if unscored else "")


def sampling_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Returns table rows for `SAMPLING_COLUMNS`."""
    estimates = {f"pass@{k}": estimate for k, estimate in summary["pass_at_k"].items()}
    estimates[f"majority of {summary['samples']}"] = summary["majority"]
    return [[name, f"{estimate['value']:.1%}", _interval(estimate)] for name, estimate in estimates.items()]


def _interval(estimate: Mapping[str, Any]) -> str:
    if estimate["interval_95"] is None:
        return "-"
    low, high = estimate["interval_95"]
    return f"{low:.1%} - {high:.1%}"
