from __future__ import annotations

from itertools import combinations

import pytest

from reft_math.scoring.sampling import majority_vote, pass_at_k, same_vote


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
        (["18", "7", "18.0", "7", "18.00"], [True, False, True, False, True], 1.0),
        (["7", "x=5", "7", "5", "$5"], [True, False, True, False, False], 0.0),
        (["(C)", "B", "C", "B", r"\text{C}"], [True, False, True, False, True], 1.0),
    ],
)
def test_the_majority_votes(answers: list[str | None], is_correct: list[bool], expected: float) -> None:
    assert majority_vote(answers, is_correct) == expected


EQUAL = (
    (
        "18",
        "18.0",
        "18.00",
        "$18",
        r"\$18",
        "x=18",
        "x = 18",
        r"18\text{ m}^2",
        r"18\,\mathrm{cm}^{2}",
        r"18^\circ",
        r"18\%",
    ),
    ("C", "(C)", r"\text{C}", r"\text{(C)}", r"\textbf{(C)}", "C.", "C)"),
    ("1/2", r"\frac12", r"\frac{1}{2}", r"\dfrac{1}{2}", r"\tfrac{2}{4}", "0.5", ".5", "0,5", r"x=\frac{1}{2}"),
    ("-1/2", r"-\frac12", "-0.5"),
    ("1234", "1,234", r"1{,}234", r"1\,234", r"\$1{,}234.00"),
    ("x^2", "x^{2}", "x^2.", "$x^2$", "y=x^2"),
    (r"2\sqrt{3}", r"2\sqrt3", r"2 \sqrt{3}"),
    (r"[1,2]", r"\left[1,2\right]", r"x \in [1, 2]"),
    ("even", r"\text{even}"),
    *(
        (answer,)
        for answer in ("x", "c", "5", "5x", "5xy", "5x^2", "12,5", "(1,2)", "4210_5", r"3\text{ or }4", "9" * 5000)
    ),
)


@pytest.mark.parametrize("answers", EQUAL, ids=lambda answers: answers[0][:9])
def test_equal_answers_are_one_vote_and_no_others(answers: tuple[str, ...]) -> None:
    votes = {same_vote(answer) for answer in answers}
    assert len(votes) == 1
    others = [answer for group in EQUAL if group is not answers for answer in group]
    assert votes.isdisjoint(map(same_vote, others))
