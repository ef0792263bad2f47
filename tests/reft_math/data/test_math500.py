from __future__ import annotations

import pytest

from reft_math.data.math500 import parse
from reft_math.data.problem import Problem
from reft_math.data.rows import Row
from reft_math.errors import UserError

FIELDS = {"problem": "What?", "solution": r"It is $\boxed{\frac12}$.", "answer": r"\frac12", "subject": "Algebra"}


def test_a_row_with_its_subject_and_level() -> None:
    assert parse(Row("here", 0, FIELDS | {"level": 2, "unique_id": "x"}), "math500/test/0") == Problem(
        "math500/test/0", "What?", r"\frac12", r"It is $\boxed{\frac12}$.", {"subject": "Algebra", "level": 2}
    )


def test_a_level_that_is_no_number_is_an_error() -> None:
    with pytest.raises(UserError, match="here: field \"level\" must be a whole number, got 'Level 2'"):
        parse(Row("here", 0, FIELDS | {"level": "Level 2"}), "math500/test/0")
