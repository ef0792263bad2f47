from __future__ import annotations

import json
from pathlib import Path

import pytest

from reft_math.data.math10k import own_problems, parse
from reft_math.data.problem import Problem
from reft_math.data.rows import Row
from reft_math.errors import UserError

FIELDS = {"instruction": "How many?\n ", "input": "", "output": "2+3=5. The answer is 5.", "answer": "5.0"}


def test_a_row() -> None:
    assert parse(Row("here", 0, FIELDS), "math10k/train/0") == Problem(
        "math10k/train/0", "How many?", "5", "2+3=5. The answer is 5."
    )


def test_an_input_follows_the_instruction_and_may_be_absent() -> None:
    assert parse(Row("here", 0, FIELDS | {"input": "2 and 3"}), "x").question == "How many?\n2 and 3"
    without = {name: value for name, value in FIELDS.items() if name != "input"}
    assert parse(Row("here", 0, without), "x").question == "How many?"


def test_own_files_have_either_form(tmp_path: Path) -> None:
    path = tmp_path / "my_data.jsonl"
    own = {"question": "Why?", "solution": "So 7.", "answer": 7}
    path.write_text(json.dumps(FIELDS) + "\n" + json.dumps(own) + "\n")
    first, second = own_problems(path)
    assert first == Problem("my_data/train/0", "How many?", "5", "2+3=5. The answer is 5.")
    assert second == Problem("my_data/train/1", "Why?", "7", "So 7.")


def test_own_rows_may_have_answers_alone(tmp_path: Path) -> None:
    path = tmp_path / "my_data.json"
    path.write_text('[{"question": "Why?", "answer": "7"}]')
    assert own_problems(path) == [Problem("my_data/train/0", "Why?", "7", "")]


def test_a_solution_that_is_given_is_one(tmp_path: Path) -> None:
    path = tmp_path / "my_data.json"
    path.write_text('[{"question": "Why?", "answer": "7", "solution": " "}]')
    with pytest.raises(UserError, match=r'my_data.json, row 0: field "solution" must not be empty'):
        own_problems(path)
