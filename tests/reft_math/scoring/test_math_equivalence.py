"""The text that counts as a completion's answer, and settings; processes are in `test_math_workers`."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from reft_math.errors import UserError
from reft_math.scoring.math_equivalence import Equivalence, MathVerifier, compare


def test_two_workers_and_ten_seconds_unless_told() -> None:
    verifier = MathVerifier()
    assert (verifier.num_workers, verifier.time_limit) == (2, 10)


@pytest.mark.parametrize(
    ("num_workers", "time_limit", "message"),
    [
        (0, 1.0, "math-verify needs a worker: expected num_workers >= 1, got 0; try 2"),
        (1, 0.0, "math-verify needs time: expected time_limit > 0 seconds, got 0.0; try 10"),
        (1, float("nan"), "math-verify needs time: expected time_limit > 0 seconds, got nan; try 10"),
    ],
)
def test_impossible_settings_are_refused(num_workers: int, time_limit: float, message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        MathVerifier(num_workers, time_limit)


@pytest.mark.parametrize(
    ("gold", "completion", "is_right", "prediction"),
    [
        (r"\text{Evelyn}", r"It is \boxed{\text{Evelyn}}.", True, r"\text{Evelyn}"),
        (r"\text{Evelyn}", r"It is \boxed{\text{Angela}}.", False, r"\text{Angela}"),
        (r"\frac{7}{2}", "so $3½$", True, "(3+1/2)"),
        ("1'234", "$1234$", True, "1234"),
        (r"\frac{1}{3}", r"$0.\overline{3}$", True, "(1/3)"),
        ("0", r"$0.\overline{3}$", False, "(1/3)"),
        ("5", "–5", False, "-5"),
        ("3", "nothing here", False, None),
        (r"\text{Evelyn}", r"\boxed{", False, None),
        ("2,3", "$x=2$ or $x=3.$", True, "x=2, x=3"),
    ],
)
def test_gold_and_completion_are_read_as_latex_with_plain_numbers(
    gold: str, completion: str, is_right: bool, prediction: str | None
) -> None:
    """In a thread, where math-verify's own time limits would be an error."""
    with ThreadPoolExecutor(1) as threads:
        verdict = threads.submit(compare, gold, completion).result()
    assert verdict == Equivalence(is_correct=is_right, unscored=False, timed_out=False, prediction=prediction)
