from __future__ import annotations

from typing import Any

import pytest

from reft_math.data.own_solutions import right_solutions, solution_yield


def sample(problem: str, number: int, text: str, tokens: int, correct: bool = True, finished: bool = True) -> Any:
    return {
        **{"id": f"{problem}#{number}", "problem": problem, "question": f"{problem}?", "gold": "4"},
        **{"completion": text, "num_tokens": tokens, "correct": correct, "finished": finished},
    }


RECORDS = [
    sample("a", 0, "2+2=4", 9),
    sample("a", 1, "4", 3),
    sample("a", 2, "2+2=4\n", 10),
    sample("a", 3, "so 4", 2, finished=False),
    sample("b", 0, "5", 1, correct=False),
    sample("c", 0, "1+3=4", 8),
    sample("c", 1, "3+1=4", 8),
]


@pytest.mark.parametrize(
    ("keep", "kept"),
    [("all", ["2+2=4", "4", "1+3=4", "3+1=4"]), ("shortest", ["4", "1+3=4"])],
)
def test_right_finished_solutions_are_kept_each_text_once(keep: Any, kept: list[str]) -> None:
    rows = right_solutions(RECORDS, keep)
    assert [row["solution"] for row in rows] == kept
    assert rows[0].keys() == {"question", "solution", "answer", "problem", "num_tokens"}


def test_yield_counts_problems_and_samples() -> None:
    assert solution_yield(RECORDS, right_solutions(RECORDS, "all")) == {
        **{"problems": 3, "samples": 7, "right": 6, "cut_off": 1},
        **{"problems_solved": 2, "kept": 4, "mean_tokens_kept": 7.0},
    }
    assert solution_yield(RECORDS[4:5], [])["mean_tokens_kept"] is None
