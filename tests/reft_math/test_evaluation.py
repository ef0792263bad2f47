from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from reft_math.arithmetic.problems import OPENERS
from reft_math.arithmetic.tokenizer import build_tokenizer
from reft_math.data.problem import Problem
from reft_math.data.templates import TEMPLATES
from reft_math.evaluation import (
    EVALUATION_COLUMNS,
    Decoding,
    Scorer,
    complete,
    default_max_new_tokens,
    evaluate,
    evaluation_rows,
    is_numeric,
    summarise,
)

CPU = torch.device("cpu")
EOS = 2
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
RIGHT = {question: f"#### {answer}<eos>" for question, answer in zip(QUESTIONS, ANSWERS, strict=True)}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture
def decoding(tokenizer: PreTrainedTokenizerFast) -> Decoding:
    return Decoding(tokenizer, TEMPLATES["chat"], [EOS], max_new_tokens=20, batch_size=2)


class Scripted:
    """A ``generate`` that answers each question with its text of the script and remembers what it was asked."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, script: dict[str, str], stop_at: int | None = None) -> None:
        self.tokenizer, self.script, self.stop_at = tokenizer, script, stop_at
        self.batches: list[list[str]] = []
        self.prompts: list[str] = []
        self.settings: dict[str, Any] = {}

    def __call__(self, inputs: torch.Tensor, attention_mask: torch.Tensor, **settings: Any) -> torch.Tensor:
        assert inputs.shape == attention_mask.shape
        prompts = [self.tokenizer.decode(row[mask.bool()]) for row, mask in zip(inputs, attention_mask, strict=True)]
        questions = [prompt.removeprefix("<bos>").partition("\n")[0] for prompt in prompts]
        self.batches.append(questions)
        if len(self.batches) == self.stop_at:
            raise KeyboardInterrupt
        self.prompts += prompts
        self.settings = settings
        answers = [
            torch.tensor(self.tokenizer.encode(self.script[name], add_special_tokens=False)) for name in questions
        ]
        padding = settings["pad_token_id"]
        drawn = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=padding)
        return torch.cat([inputs, drawn], dim=1)


class Scoring:
    """Right where the completion ends with the gold answer; remembers what it scored."""

    def __init__(self) -> None:
        self.golds: list[str] = []

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        self.golds += [gold for gold, _ in pairs]
        return [{"correct": completion.endswith(f"#### {gold}")} for gold, completion in pairs]


# --- complete ----------------------------------------------------------------------------------------------------


def test_a_completion_is_cut_at_the_first_of_any_end_token(
    tokenizer: PreTrainedTokenizerFast, decoding: Decoding
) -> None:
    hashes = tokenizer.convert_tokens_to_ids("####")
    decoding = replace(decoding, end_token_ids=[EOS, hashes])
    scripts = ["3 apples<eos>", "3 apples####7<eos>", "3<eos>4<eos>", "3 apples 4 5", "<eos>"]
    generate = Scripted(tokenizer, dict(zip(QUESTIONS, scripts, strict=True)))
    assert complete(QUESTIONS, generate, decoding, CPU) == [
        {"completion": "3 apples", "num_tokens": 3, "finished": True},
        {"completion": "3 apples", "num_tokens": 3, "finished": True},
        {"completion": "3", "num_tokens": 2, "finished": True},
        {"completion": "3 apples 4 5", "num_tokens": 6, "finished": False},
        {"completion": "", "num_tokens": 1, "finished": True},
    ]


def test_padding_with_the_end_token_changes_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    padded_by_end = build_tokenizer()
    padded_by_end.pad_token = padded_by_end.eos_token
    results = [
        complete(QUESTIONS, Scripted(each, RIGHT), Decoding(each, TEMPLATES["chat"], [EOS], 20, 2), CPU)
        for each in (tokenizer, padded_by_end)
    ]
    assert results[0] == results[1]
    assert [result["num_tokens"] for result in results[0]] == [4, 5, 4, 4, 4]


def test_prompts_and_settings_reach_generate(tokenizer: PreTrainedTokenizerFast, decoding: Decoding) -> None:
    generate = Scripted(tokenizer, RIGHT)
    complete(QUESTIONS[:3], generate, decoding, CPU)
    assert generate.prompts == [f"<bos>{question}\n" for question in QUESTIONS[:3]]
    assert generate.settings == {"max_new_tokens": 20, "eos_token_id": [EOS], "pad_token_id": 0}


@pytest.mark.parametrize("opener", OPENERS.values())
def test_the_opener_is_part_of_the_prompt_and_of_the_completion(
    tokenizer: PreTrainedTokenizerFast, decoding: Decoding, opener: str
) -> None:
    generate = Scripted(tokenizer, {QUESTIONS[0]: " 3.\n#### 3<eos>"})
    (result,) = complete(QUESTIONS[:1], generate, replace(decoding, opener=opener), CPU)
    assert generate.prompts == [f"<bos>{QUESTIONS[0]}\n{opener}"]
    assert result == {"completion": f"{opener} 3.\n#### 3", "num_tokens": 8, "finished": True}


# --- evaluate ----------------------------------------------------------------------------------------------------


def test_records_come_in_the_order_of_the_problems_though_the_longest_are_done_first(
    tokenizer: PreTrainedTokenizerFast, decoding: Decoding, tmp_path: Path
) -> None:
    generate = Scripted(tokenizer, {**RIGHT, QUESTIONS[3]: "#### 8<eos>"})
    records = evaluate(PROBLEMS, generate, decoding, Scoring(), tmp_path / "records.jsonl", CPU, "test")
    assert [(record["id"], record["question"], record["gold"]) for record in records] == [
        (problem.id, problem.question, problem.answer) for problem in PROBLEMS
    ]
    assert [record["completion"] for record in records] == ["#### 3", "#### 19", "#### 4", "#### 8", "#### 9"]
    assert [record["correct"] for record in records] == [True, True, True, False, True]
    assert generate.batches == [[QUESTIONS[2], QUESTIONS[3]], [QUESTIONS[1], QUESTIONS[0]], [QUESTIONS[4]]]
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    assert sorted(lines) == sorted(json.dumps(record) for record in records)


def test_a_second_call_completes_only_what_has_no_record(
    tokenizer: PreTrainedTokenizerFast, decoding: Decoding, tmp_path: Path
) -> None:
    path = tmp_path / "records.jsonl"
    first = evaluate(PROBLEMS[:3], Scripted(tokenizer, RIGHT), decoding, Scoring(), path, CPU, "test")
    generate, score = Scripted(tokenizer, RIGHT), Scoring()
    records = evaluate(PROBLEMS, generate, decoding, score, path, CPU, "test")
    assert [question for batch in generate.batches for question in batch] == QUESTIONS[3:]
    assert score.golds == ANSWERS[3:]
    assert records[:3] == first
    again = Scripted(tokenizer, {})
    assert evaluate(PROBLEMS, again, decoding, Scoring(), path, CPU, "test") == records
    assert again.batches == []


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_a_kill_between_batches_loses_no_row_and_scores_none_twice(
    tokenizer: PreTrainedTokenizerFast, decoding: Decoding, tmp_path: Path, stop_at: int
) -> None:
    whole = evaluate(PROBLEMS, Scripted(tokenizer, RIGHT), decoding, Scoring(), tmp_path / "whole.jsonl", CPU, "test")
    path, score = tmp_path / "records.jsonl", Scoring()
    with pytest.raises(KeyboardInterrupt):
        evaluate(PROBLEMS, Scripted(tokenizer, RIGHT, stop_at), decoding, score, path, CPU, "test")
    assert len(score.golds) == 2 * (stop_at - 1)
    assert evaluate(PROBLEMS, Scripted(tokenizer, RIGHT), decoding, score, path, CPU, "test") == whole
    assert sorted(score.golds) == sorted(ANSWERS)
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_records_of_other_problems_are_left_out(
    tokenizer: PreTrainedTokenizerFast, decoding: Decoding, tmp_path: Path
) -> None:
    path = tmp_path / "records.jsonl"
    evaluate(PROBLEMS, Scripted(tokenizer, RIGHT), decoding, Scoring(), path, CPU, "test")
    records = evaluate(PROBLEMS[1:2], Scripted(tokenizer, {}), decoding, Scoring(), path, CPU, "test")
    assert [record["id"] for record in records] == ["p/1"]


# --- scores ------------------------------------------------------------------------------------------------------


def test_a_numeric_answer_counts_by_the_last_number_and_the_stated_one_is_told_beside_it() -> None:
    with Scorer(is_numeric=True) as score:
        stated, last, wrong = score([("7", "#### 7"), ("7", "3+4=7"), ("5", "15")])
    assert (stated["correct"], stated["strict"], stated["flexible"]) == (True, True, True)
    assert (last["correct"], last["strict"], last["flexible"]) == (True, False, True)
    assert (wrong["correct"], wrong["last_number"]) == (False, "15")


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
        "unfinished": 1,
    }


def test_scores_that_the_records_hold_are_counted() -> None:
    numeric = [record(True, strict=False, flexible=True), record(True, strict=True, flexible=True)]
    summary = summarise(numeric)
    assert (summary["strict"], summary["flexible"]) == (1, 2)
    assert "timed_out" not in summary
    summary = summarise([record(False, timed_out=True), record(True, timed_out=False)])
    assert summary["timed_out"] == 1
    assert "strict" not in summary


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
    assert rows[0] == ["base", "1", "4", "25.0%", "4.6% - 69.9%", "1", "6", "-"]
    assert rows[1] == ["prefix", "4", "4", "100.0%", "51.0% - 100.0%", "-", "9", "0.25"]
