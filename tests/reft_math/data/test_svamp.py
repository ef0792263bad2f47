from __future__ import annotations

import pytest

from reft_math.data.problem import Problem
from reft_math.data.rows import Row
from reft_math.data.svamp import joined, parse
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
