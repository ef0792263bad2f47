from __future__ import annotations

import pytest

from reft_math.data.mawps import parse
from reft_math.data.problem import Problem
from reft_math.data.rows import Row
from reft_math.errors import UserError


def test_a_row() -> None:
    row = Row("here", 0, {"instruction": "How many ?", "input": "", "output": "", "answer": "-15.0"})
    assert parse(row, "mawps/test/0") == Problem("mawps/test/0", "How many ?", "-15")


def test_a_missing_field_is_named() -> None:
    with pytest.raises(UserError, match='here: field "answer" is missing; the row has instruction'):
        parse(Row("here", 0, {"instruction": "How many ?"}), "mawps/test/0")
