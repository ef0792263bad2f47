from __future__ import annotations

import pytest

from reft_math.data.gsm8k import parse
from reft_math.data.problem import Problem
from reft_math.data.rows import Row
from reft_math.errors import UserError


def test_calculator_marks_go_and_the_last_line_gives_the_answer() -> None:
    row = Row("here", 3, {"question": "How many? ", "answer": "40*27 = $<<40*27=1080>>1,080 in all.\n#### 1,080"})
    assert parse(row, "gsm8k/train/3") == Problem(
        "gsm8k/train/3", "How many?", "1080", "40*27 = $1,080 in all.\n#### 1,080"
    )


@pytest.mark.parametrize("answer", ["18", "#### 18\nor so", "It is #### 18", "So:\n####"])
def test_a_solution_without_its_last_line_is_an_error(answer: str) -> None:
    with pytest.raises(UserError, match='here: field "answer" must end with a line "#### N", got '):
        parse(Row("here", 0, {"question": "Why?", "answer": answer}), "gsm8k/train/0")
