from __future__ import annotations

import json
from pathlib import Path

import pytest

from reft_math.data.problem import Problem
from reft_math.data.rows import Row
from reft_math.data.svamp import SOURCE, joined, parse
from reft_math.errors import UserError


@pytest.mark.parametrize("answer", [145.0, "145.0", "145", 145])
def test_a_row_of_either_copy(answer: float | str) -> None:
    fields = {"Body": "He has 290 pens.", "Question": "How many are left?", "Answer": answer, "Type": "Subtraction"}
    assert parse(Row("here", 0, fields), "svamp/test/chal-1") == Problem(
        "svamp/test/chal-1", "He has 290 pens. How many are left?", "145", "", {"type": "Subtraction"}
    )


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("He has 9 pens.", "He has 9 pens. How many are left?"),
        ("He has 9 pens. If he sells 3", "He has 9 pens. If he sells 3, how many are left?"),
        ("If he sells 3.", "If he sells 3. How many are left?"),
        ("He sells 3. Then he buys 8", "He sells 3. Then he buys 8. How many are left?"),
    ],
)
def test_body_and_question_are_joined_as_running_text(body: str, expected: str) -> None:
    assert joined(body, "How many are left?") == expected


def test_a_missing_field_is_named() -> None:
    with pytest.raises(UserError, match='here: field "Body" is missing; the row has Question'):
        parse(Row("here", 0, {"Question": "How many?"}), "svamp/test/chal-1")


def test_a_name_that_two_rows_share_is_refused_with_both_places(tmp_path: Path) -> None:
    """Their records could not be told apart."""
    (tmp_path / "svamp").mkdir()
    row = json.dumps({"ID": "chal-1", "Body": "A.", "Question": "B?", "Answer": 1, "Type": "Sum"})
    (tmp_path / "svamp" / "test.jsonl").write_text(f"{row}\n\n{row}\n")
    with pytest.raises(UserError, match=r'line 3: every row needs an id of its own, got "chal-1".* of .*line 1'):
        SOURCE.problems("test", str(tmp_path))
