"""Where solutions first go wrong, against labels by hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from reft_math.probes.equations import equations
from reft_math.probes.solution_errors import SolutionError, first_error, miscopied_given

# 20 in the style of GSM8K, 20 of chat models, 20 of the embedded world, written and labelled by hand: ``kind``, and
# ``text``, the first false equation or miscopied number.
SOLUTIONS = [
    json.loads(line) for line in Path(__file__).with_name("solutions.jsonl").read_text(encoding="utf-8").splitlines()
]


def test_there_are_sixty_labels() -> None:
    assert Counter(row["style"] for row in SOLUTIONS) == {"gsm8k": 20, "latex": 20, "embedded": 20}


@pytest.mark.parametrize("row", SOLUTIONS, ids=[f"{row['style']}-{row['kind']}" for row in SOLUTIONS])
def test_labels_by_hand_are_met(row: dict[str, Any]) -> None:
    question, text = row["question"], row["completion"]
    if row["kind"] == "right":
        assert all(equation.is_true for equation in equations(text))
        assert miscopied_given(question, text, equations(text)) is None
        return
    start = None if row["text"] is None else text.index(row["text"])
    assert first_error(question, text) == SolutionError(row["kind"], start, row["text"] or "")


@pytest.mark.parametrize(
    ("question", "completion", "copied"),
    [
        ("Tom has 120 pens and 45 books.", "120 + 54 = 174", "54"),
        ("Tom has 120 pens and 45 books.", "12 + 45 = 57", "12"),
        ("Tom has 120 pens and 45 books.", "Tom has 46 books, 120 pens: all is 166", "46"),
        ("Tom has 120 pens and 45 books.", "The answer is 46.", None),  # an answer is no given
        ("Tom has 120 pens and 45 books.", "45 + 120 = 165, and 46 more", None),  # no given is missing
        ("Tom has 120 pens and 45 books.", "120 + 98 = 218", None),  # quite another number
        ("Tom has 8 pens for a week.", "9 * 7 = 63", "9"),  # 7 is in the week
        ("A price of $80 falls by 30%.", "80 * 0.7 = 56", None),
        ("Ann reads 16 pages, half of them twice.", "16 / 2 = 8", None),
    ],
)
def test_a_given_but_for_a_digit_is_copied_wrongly(question: str, completion: str, copied: str | None) -> None:
    found = miscopied_given(question, completion, equations(completion))
    assert (found and found.text) == copied


def test_what_comes_to_no_answer_is_not_blamed_on_the_plan() -> None:
    assert first_error("2 and 3?", "2 + 3 = 5, so").kind == "plan"
    assert first_error("2 and 3?", "2 + 3 = 5, so", has_answer=False).kind == "unreadable"
    assert first_error("2 and 3?", "2 + 3 = 6, so", has_answer=False).kind == "false equation"
