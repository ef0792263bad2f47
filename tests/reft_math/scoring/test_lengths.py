from __future__ import annotations

import numpy as np
import pytest

from reft_math.scoring.lengths import difference_cell, time_cell, tokens_cell, tokens_difference, tokens_interval
from reft_math.scoring.statistics import mean_interval


def test_intervals_are_over_problems_and_differences_over_pairs() -> None:
    """Two samples of each of three problems: what is drawn again are their means."""
    problems = [{"problem": name} for name in "aabbcc"]
    first, second = (
        [{**problem, "num_tokens": tokens} for problem, tokens in zip(problems, column, strict=True)]
        for column in ((2, 4, 10, 10, 7, 8), (1, 1, 9, 10, 5, 5))
    )
    assert tokens_interval(first) == list(mean_interval([3.0, 10.0, 7.5]) or ())
    assert tokens_difference(first, second) == {
        "difference": pytest.approx(np.mean([-2.0, -0.5, -2.5])),
        "interval_95": list(mean_interval([-2.0, -0.5, -2.5]) or ()),
    }
    single = [{"num_tokens": tokens} for tokens in (3, 10, 7)]
    assert tokens_interval(single) == list(mean_interval([3, 10, 7]) or ())
    assert tokens_difference(single, single) == {"difference": 0.0, "interval_95": None}


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (tokens_cell(281.2, (270.4, 291.6)), "281 (270 to 292)"),
        (tokens_cell(41.42, (41.0, 42.06)), "41.4 (41.0 to 42.1)"),
        (tokens_cell(7.0, None), "7.0"),
        (difference_cell({"difference": -77.04, "interval_95": [-92.1, -0.01]}), "-77.0 (-92.1 to +0.0)"),
        (difference_cell(None), "-"),
        (time_cell(0.0123), "12 ms"),
        (time_cell(3.44), "3.4 s"),
        (time_cell(None), "-"),
    ],
)
def test_cells(cell: str, text: str) -> None:
    assert cell == text
