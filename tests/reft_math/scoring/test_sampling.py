from __future__ import annotations

from itertools import combinations

import pytest

from reft_math.scoring.sampling import majority_vote, pass_at_k


@pytest.mark.parametrize(("n", "c"), [(1, 0), (1, 1), (4, 0), (4, 1), (4, 3), (4, 4), (7, 2)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n: int, c: int) -> None:
    outcomes = [index < c for index in range(n)]
    for k in range(1, n + 1):
        subsets = list(combinations(outcomes, k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_stays_exact_where_factorials_overflow_floats() -> None:
    assert pass_at_k(2000, 1, 1000) == 0.5


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_impossible_counts_are_errors(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(n, c, k)


@pytest.mark.parametrize(
    ("answers", "is_correct", "expected"),
    [
        (["7", "7", "8"], [True, True, False], 1.0),
        (["8", "7", "8"], [False, True, False], 0.0),
        (["7", "8"], [True, False], 0.5),
        (["7", "8", "9", "7", "8"], [True, False, False, True, False], 0.5),
        ([None, None, "7"], [False, False, True], 1.0),
        ([None], [False], 0.0),
    ],
)
def test_the_majority_votes(answers: list[str | None], is_correct: list[bool], expected: float) -> None:
    assert majority_vote(answers, is_correct) == expected
