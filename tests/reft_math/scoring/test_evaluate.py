from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from reft_math.data.problem import Problem
from reft_math.scoring.evaluate import (
    COST_COLUMNS,
    EVALUATION_COLUMNS,
    Scorer,
    cost_rows,
    default_max_new_tokens,
    evaluate,
    evaluation_rows,
    is_numeric,
    sampling_rows,
    summarise,
)
from reft_math.scoring.statistics import wilson_interval

QUESTIONS = [
    "Anna has 3 apples. How many apples does Anna have now?",
    "Tom has 14 coins. She buys 5 more. How many coins does Tom have now?",
    "Ben has 3 pens. Then the number of pens doubles. He loses 2 pens. How many pens does Ben have now?",
    "Lucy has 7 cards. He finds 2 cards. How many cards does Lucy have now?",
    "Omar has 9 books. How many books does Omar have now?",
]
ANSWERS = ["3", "19", "4", "9", "9"]
PROBLEMS = [
    Problem(id=f"p/{index}", question=question, answer=answer)
    for index, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))
]
RIGHT = {question: f"#### {answer}" for question, answer in zip(QUESTIONS, ANSWERS, strict=True)}


class Scripted:
    """Answers each question with its text of the script and remembers what it was asked."""

    def __init__(self, script: dict[str, str], stop_at: int | None = None) -> None:
        self.script, self.stop_at = script, stop_at
        self.batches: list[list[str]] = []
        self.seeds: list[int | None] = []

    def __call__(self, questions: Sequence[str], seed: int | None) -> list[dict[str, Any]]:
        self.batches.append(list(questions))
        self.seeds.append(seed)
        if len(self.batches) == self.stop_at:
            raise KeyboardInterrupt
        return [
            {"completion": self.script[question], "num_tokens": 3, "finished": True} for question in self.batches[-1]
        ]


class Scoring:
    """Right where the completion ends with the gold answer; remembers what it scored."""

    def __init__(self) -> None:
        self.golds: list[str] = []

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        self.golds += [gold for gold, _ in pairs]
        return [{"correct": completion.endswith(f"#### {gold}")} for gold, completion in pairs]


# --- evaluate ----------------------------------------------------------------------------------------------------


def test_records_come_in_the_order_of_the_problems_though_the_longest_are_done_first(tmp_path: Path) -> None:
    generate = Scripted({**RIGHT, QUESTIONS[3]: "#### 8"})
    records = evaluate(PROBLEMS, generate, Scoring(), tmp_path / "records.jsonl", "test", batch_size=2)
    assert [(record["id"], record["question"], record["gold"]) for record in records] == [
        (problem.id, problem.question, problem.answer) for problem in PROBLEMS
    ]
    assert [record["completion"] for record in records] == ["#### 3", "#### 19", "#### 4", "#### 8", "#### 9"]
    assert [record["correct"] for record in records] == [True, True, True, False, True]
    assert generate.batches == [[QUESTIONS[2], QUESTIONS[3]], [QUESTIONS[1], QUESTIONS[0]], [QUESTIONS[4]]]
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    assert sorted(lines) == sorted(json.dumps(record) for record in records)


def test_a_second_call_scores_only_what_has_no_record_and_decodes_its_batches_whole(tmp_path: Path) -> None:
    """A row rounds as its batch does."""
    path = tmp_path / "records.jsonl"
    first = evaluate(PROBLEMS[:3], Scripted(RIGHT), Scoring(), path, "test", batch_size=2)
    generate, score = Scripted(RIGHT), Scoring()
    records = evaluate(PROBLEMS, generate, score, path, "test", batch_size=2)
    assert generate.batches == [[QUESTIONS[2], QUESTIONS[3]], [QUESTIONS[4]]]
    assert score.golds == ANSWERS[3:]
    assert records[:3] == first
    assert first.seconds_per_answer is not None
    assert 0 < first.seconds_per_answer < 1
    assert records.seconds_per_answer is None, "of some rows it is not known"
    again = Scripted({})
    assert evaluate(PROBLEMS, again, Scoring(), path, "test", batch_size=2) == records
    assert again.batches == []


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_a_kill_between_batches_loses_no_row_and_scores_none_twice(tmp_path: Path, stop_at: int) -> None:
    whole = evaluate(PROBLEMS, Scripted(RIGHT), Scoring(), tmp_path / "whole.jsonl", "test", batch_size=2)
    path, score = tmp_path / "records.jsonl", Scoring()
    with pytest.raises(KeyboardInterrupt):
        evaluate(PROBLEMS, Scripted(RIGHT, stop_at), score, path, "test", batch_size=2)
    assert len(score.golds) == 2 * (stop_at - 1)
    assert evaluate(PROBLEMS, Scripted(RIGHT), score, path, "test", batch_size=2) == whole
    assert sorted(score.golds) == sorted(ANSWERS)
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_run_of_an_older_version_goes_on_with_this_ones_verdicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It took the last number whatever was stated; a row of a problem that is no longer asked for stays as it is."""
    path, script = tmp_path / "records.jsonl", {**RIGHT, QUESTIONS[0]: r"\boxed{3} in 4 weeks"}
    with Scorer(is_numeric=True) as score:
        whole = evaluate(PROBLEMS, Scripted(script), score, path, "test", batch_size=2)
        new = path.read_text()
        verdicts = '"correct": {}, "strict": true, "flexible": false'
        old = new.replace(verdicts.format("true"), verdicts.format("false"))
        assert old != new
        path.write_text(old + '{"id": "other"}\n' + '{"id": "to')
        assert evaluate(PROBLEMS, Scripted({}), score, path, "test", batch_size=2) == whole
    assert path.read_text() == new + '{"id": "other"}\n'
    assert capsys.readouterr().out == f"note: {path}: 1 of 5 scores were of another version and are made anew\n"


def test_records_of_other_problems_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    evaluate(PROBLEMS, Scripted(RIGHT), Scoring(), path, "test", batch_size=2)
    records = evaluate(PROBLEMS[1:2], Scripted({}), Scoring(), path, "test", batch_size=2)
    assert [record["id"] for record in records] == ["p/1"]


def test_samples_are_rows_of_their_own_and_a_stopped_run_draws_the_same_ones(tmp_path: Path) -> None:
    """A batch that is done in part is drawn whole again under its seed; only what is missing is recorded."""

    def draw(questions: Sequence[str], seed: int | None) -> list[dict[str, Any]]:
        drawn = random.Random(seed)
        return [{"completion": f"{drawn.random()}", "num_tokens": 1, "finished": True} for _ in questions]

    def run(name: str, seed: int) -> list[dict[str, Any]]:
        return evaluate(PROBLEMS, draw, Scoring(), tmp_path / name, "test", batch_size=4, samples=3, seed=seed)

    whole = run("whole", 0)
    assert [record["id"] for record in whole[:4]] == ["p/0#0", "p/0#1", "p/0#2", "p/1#0"]
    assert [record["problem"] for record in whole[:4]] == ["p/0", "p/0", "p/0", "p/1"]
    assert len({record["completion"] for record in whole}) == 15
    assert {record["completion"] for record in run("other", 1)}.isdisjoint(record["completion"] for record in whole)
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    (tmp_path / "stopped").write_bytes(b"".join(lines[:6]))
    assert run("stopped", 0) == whole
    assert (tmp_path / "stopped").read_bytes() == b"".join(lines)


# --- scores ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_numeric", [True, False])
def test_thoughts_are_no_answers(is_numeric: bool) -> None:
    completions = ["<think>It is 8.</think>The answer is 9.", "<think>The answer is 9.", "The answer is 9."]
    with Scorer(is_numeric) as score:
        rows = score([("9", text) for text in completions])
    assert [row["correct"] for row in rows] == [True, False, True]
    assert is_numeric or [row["unscored"] for row in rows] == [False] * 3


def test_a_numeric_answer_counts_by_what_is_stated_and_else_by_the_last_number() -> None:
    with Scorer(is_numeric=True) as score:
        rows = score([("7", "#### 7"), ("7", "3+4=7"), ("7", r"\boxed{7} in 4 weeks"), ("4", r"\boxed{7} in 4 weeks")])
    verdicts = [(row["correct"], row["strict"], row["flexible"]) for row in rows]
    assert verdicts == [(True, True, True), (True, False, True), (True, True, False), (False, False, True)]


@pytest.mark.parametrize(("dataset", "expected"), [("arithmetic", True), ("math500", False), ("math10k", True)])
def test_math500_is_never_numeric_however_its_first_answers_look(dataset: str, expected: bool) -> None:
    assert is_numeric(dataset, [Problem("a", "?", "7")]) is expected


def test_letters_among_the_answers_of_a_set_are_no_numbers() -> None:
    assert not is_numeric("math10k", [Problem("a", "?", "7"), Problem("b", "?", "B")])


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["7", "-3", "2.5"], True),
        (["7", "\\frac{1}{2}"], False),
        (["7", "x+1"], False),
        (["7", "7 apples"], False),
        (["(1, 2)"], False),
    ],
)
def test_an_own_files_answers_tell_whether_they_are_numbers(answers: list[str], expected: bool) -> None:
    assert is_numeric("mine.jsonl", [Problem(str(index), "?", text) for index, text in enumerate(answers)]) is expected


def test_the_default_length_fits_the_set() -> None:
    names = ("arithmetic", "math500", "gsm8k", "mine.jsonl")
    assert [default_max_new_tokens(name) for name in names] == [80, 1024, 512, 512]


# --- summarise ---------------------------------------------------------------------------------------------------


def record(correct: bool, num_tokens: int = 10, finished: bool = True, **scores: bool) -> dict[str, Any]:
    return {"correct": correct, "num_tokens": num_tokens, "finished": finished, **scores}


def test_a_summary_by_hand() -> None:
    records = [record(True, 4), record(True, 8), record(False, 20, finished=False), record(True, 6)]
    # p = 3/4, n = 4, z = 1.959964: centre (p + z²/2n)/(1 + z²/n) = 0.62753, half width 0.32689.
    assert summarise(records) == {
        "correct": 3,
        "total": 4,
        "accuracy": 0.75,
        "interval_95": pytest.approx([0.300642, 0.954413], abs=1e-5),
        "mean_tokens": 9.5,
        "tokens_interval_95": [5.0, 16.5],  # 15 of the 256 ways to draw four are 5 or less, 9 are 16.5 or more
        "unfinished": 1,
    }


def test_scores_that_the_records_hold_are_counted() -> None:
    numeric = [record(True, strict=False, flexible=True), record(True, strict=True, flexible=True)]
    summary = summarise(numeric)
    assert (summary["strict"], summary["flexible"]) == (1, 2)
    assert "timed_out" not in summary
    states = [(True, False), (True, True), (False, False)]
    summary = summarise([record(not lost, unscored=lost, timed_out=late) for lost, late in states])
    assert (summary["unscored"], summary["timed_out"], summary["accuracy"]) == (2, 1, pytest.approx(1 / 3))
    assert evaluation_rows({"base": summary})[0][3] == "33.3% (2 unscored)"
    assert "strict" not in summary


def test_the_error_of_numeric_answers_is_over_those_there_are() -> None:
    answers = [("9", "7", "7"), (None, "10", "4.5"), (None, None, "3")]
    names = ("stated", "last_number", "gold")
    summary = summarise([{**record(False), **dict(zip(names, row, strict=True))} for row in answers])
    assert (summary["mean_absolute_error"], summary["unanswered"]) == (3.75, 1)
    summary = summarise([{**record(False), "last_number": "9" * 400, "gold": "7"}])
    assert (summary["mean_absolute_error"], summary["unanswered"]) == (None, 0)


def test_the_comparison_with_the_base_by_hand() -> None:
    this = [record(outcome) for outcome in (True, True, True, True, False, True, False)]
    base = [record(outcome) for outcome in (False, False, False, False, True, True, False)]
    # 2 · (C(5,0) + C(5,1)) / 2⁵
    expected = {"only_base": 1, "only_this": 4, "p_value": pytest.approx(0.375)}
    assert summarise(this, base)["mcnemar_vs_base"] == expected


def test_the_table_has_a_row_a_system_and_a_cell_a_column() -> None:
    base = [record(False, 5, strict=False, flexible=False)] * 3 + [record(True, 7, strict=True, flexible=True)]
    this = [record(True, 9)] * 4
    rows = evaluation_rows({"base": summarise(base), "prefix": summarise(this, base)})
    assert [len(row) for row in rows] == [len(EVALUATION_COLUMNS)] * 2
    assert rows[0] == ["base", "1", "4", "25.0%", "4.6% - 69.9%", "1", "1", "-"]
    assert rows[1] == ["prefix", "4", "4", "100.0%", "51.0% - 100.0%", "-", "-", "0.25"]
    rows = cost_rows({"base": {**summarise(base), "seconds_per_answer": 0.0123}, "prefix": summarise(this, base)})
    assert [len(row) for row in rows] == [len(COST_COLUMNS)] * 2
    assert rows[0] == ["base", "5.5 (5.0 to 6.5)", "-", "0", "12 ms"]
    assert rows[1] == ["prefix", "9.0", "+3.5 (+2.5 to +4.0)", "0", "-"]


def test_samples_are_summarised_over_problems_by_hand() -> None:
    """Of 4 samples, 2 and 0 are right: pass@1 1/4, pass@2 (1 - 1/6)/2, pass@4 1/2; "7" has the first one's majority."""
    outcomes = {"a": [("7", True), ("7", True), ("8", False), (None, False)], "b": [("1", False)] * 4}
    records = [
        {**record(correct), "problem": problem, "last_number": answer, "gold": "7"}
        for problem, samples in outcomes.items()
        for answer, correct in samples
    ]
    summary = summarise(records)
    assert (summary["correct"], summary["total"], summary["accuracy"], summary["samples"]) == (2, 8, 0.25, 4)
    values = {k: estimate["value"] for k, estimate in summary["pass_at_k"].items()}
    assert values == {"1": 0.25, "2": pytest.approx(5 / 12), "4": 0.5}
    assert summary["majority"]["value"] == 0.5
    assert summary["interval_95"] == [0.0, 0.5]  # the two problems' rates, 1/2 and 0, drawn with replacement
    assert "mcnemar_vs_base" not in summarise(records, records)
    low, high = wilson_interval(1, 2)  # each problem's vote is right or wrong
    assert sampling_rows(summary)[-1] == ["majority of 4", "50.0%", f"{low:.1%} - {high:.1%}"]


def test_equal_rates_that_are_neither_0_nor_1_have_no_interval() -> None:
    half = [{**record(correct), "problem": "a", "last_number": "7", "gold": "7"} for correct in (True, False)]
    summary = summarise(half)
    assert (summary["accuracy"], summary["interval_95"]) == (0.5, None)
    assert sampling_rows(summary)[0] == ["pass@1", "50.0%", "-"]
