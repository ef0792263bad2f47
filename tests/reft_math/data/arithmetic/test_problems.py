from __future__ import annotations

import operator
import os
import random
import re
import subprocess
import sys
from collections import Counter
from itertools import islice
from typing import get_args

import pytest

from reft_math.data.arithmetic.problems import (
    MAX_STEPS,
    MIN_STEPS,
    OPENERS,
    STYLES,
    WOMEN,
    Split,
    Step,
    Style,
    WordProblem,
    arithmetic_problems,
    expression,
    solution,
    split_of,
    two_sided_solution,
    with_wrong_step,
    word_problem,
    word_problems,
)

SPLITS: tuple[Split, ...] = get_args(Split)
STEPS = (Step(23, "+", 14, 37), Step(37, "*", 2, 74), Step(74, "-", 18, 56), Step(56, "/", 2, 28), Step(28, "*", 3, 84))


def drawn(size: int = 400, seed: int = 0) -> list[WordProblem]:
    return list(islice(word_problems("train", seed), size))


def read(question: str) -> int:
    """The answer, from nothing but the English."""
    first, *events, asked = re.split(r"(?<=\.) ", question)
    owner = (events[-1] if "than" in events[-1] else first).split()[0]
    assert f"does {owner} have now?" in asked
    value = int(re.findall(r"\d+", first)[0])
    for event in events:
        amounts = [int(amount) for amount in re.findall(r"\d+", event)]
        if "doubles" in event:
            value *= 2
        elif "triples" in event:
            value *= 3
        elif "half" in event:
            assert value % 2 == 0, "half of an odd number of things"
            value //= 2
        elif re.search(r"\bmore\b|finds", event):
            value += amounts[0]
        else:
            assert re.search(r"gives \d+ to|loses|sells|fewer", event), event
            value -= amounts[0]
    return value


def lies(steps: tuple[Step, ...]) -> list[int]:
    """Indices of the steps whose own line is false, by Python's arithmetic."""
    return [index for index, step in enumerate(steps) if not eval(str(step).replace("=", "==").replace("/", "//"))]


def test_values_stay_in_range_and_whole() -> None:
    for problem in drawn():
        assert MIN_STEPS <= len(problem.steps) <= MAX_STEPS
        for step in problem.steps:
            assert 1 <= step.before <= 199
            assert 1 <= step.after <= 199
            assert 2 <= step.operand <= 99
            assert step.operator != "/" or step.before % step.operand == 0


def test_every_step_is_true_and_starts_where_the_last_ended() -> None:
    for problem in drawn():
        assert lies(problem.steps) == []
        assert [step.before for step in problem.steps[1:]] == [step.after for step in problem.steps[:-1]]


def test_the_question_in_english_has_the_answer_of_the_steps() -> None:
    problems = drawn()
    assert [problem.answer for problem in problems] == [read(problem.question) for problem in problems]


def test_every_operator_and_number_of_steps_is_drawn() -> None:
    problems = drawn()
    assert {step.operator for problem in problems for step in problem.steps} == set("+-*/")
    assert {len(problem.steps) for problem in problems} == {2, 3, 4}


def test_the_expression_evaluates_to_the_answer() -> None:
    for problem in drawn():
        assert eval(expression(problem.steps).replace("/", "//")) == problem.answer


def test_the_expression_has_brackets_only_where_precedence_needs_them() -> None:
    assert expression(STEPS[:1]) == "23+14"
    assert expression(STEPS[:3]) == "(23+14)*2-18"
    assert expression(STEPS) == "((23+14)*2-18)/2*3"


def test_the_solution_of_each_style() -> None:
    problem = WordProblem("?", STEPS[:3])
    assert solution(problem, "at_once") == "The answer is 56.\n#### 56"
    assert solution(problem, "combined") == "In one line: (23+14)*2-18=56\n#### 56"
    assert solution(problem, "stepwise") == "Let us go step by step.\n23+14=37\n37*2=74\n74-18=56\n#### 56"


@pytest.mark.parametrize("style", STYLES)
def test_solutions_open_with_their_style_and_end_with_the_answer(style: Style) -> None:
    for problem in arithmetic_problems("train", 50, style=style):
        assert problem.solution.startswith(OPENERS[style])
        assert problem.solution.endswith(f"\n#### {problem.answer}")


def test_splits_are_disjoint_whatever_the_seeds() -> None:
    def questions_of(split: Split) -> set[str]:
        return {problem.question for seed in (0, 1) for problem in islice(word_problems(split, seed), 150)}

    questions = {split: questions_of(split) for split in SPLITS}
    assert all(split_of(question) == split for split in SPLITS for question in questions[split])
    assert len(set.union(*questions.values())) == sum(len(of_split) for of_split in questions.values())


def test_the_splits_shares() -> None:
    rng = random.Random(0)
    counts = Counter(split_of(word_problem(rng, 3).question) for _ in range(4000))
    shares = {split: counts[split] / 4000 for split in SPLITS}
    assert shares == pytest.approx({"test": 0.05, "validation": 0.05, "train": 0.15, "pretrain": 0.75}, abs=0.03)


def test_no_question_comes_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Problems of a single step, few enough that draws repeat."""
    monkeypatch.setattr("reft_math.data.arithmetic.problems.MIN_STEPS", 1)
    monkeypatch.setattr("reft_math.data.arithmetic.problems.MAX_STEPS", 1)
    questions = [problem.question for problem in islice(word_problems("test"), 500)]
    assert len(set(questions)) == 500


def test_seeds_draw_other_problems() -> None:
    assert drawn(20, seed=0) == drawn(20, seed=0) != drawn(20, seed=1)


def test_the_draw_is_the_same_in_another_process() -> None:
    code = (
        "from reft_math.data.arithmetic.problems import arithmetic_problems;"
        "print([(row.id, row.question, row.solution) for row in arithmetic_problems('train', 40, noise=0.5)])"
    )
    here = str([(row.id, row.question, row.solution) for row in arithmetic_problems("train", 40, noise=0.5)])
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        there = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
        assert there.strip() == here


def test_a_longer_draw_starts_with_the_shorter() -> None:
    assert arithmetic_problems("train", 30, noise=0.5)[:10] == arithmetic_problems("train", 10, noise=0.5)


def test_a_wrong_step_is_one_and_the_later_ones_are_consistent_with_it() -> None:
    rng = random.Random(0)
    wrong_at: Counter[int] = Counter()
    for problem in drawn():
        worked = with_wrong_step(problem, rng)
        assert worked.question == problem.question
        for step, right in zip(worked.steps, problem.steps, strict=True):
            assert (step.operator, step.operand) == (right.operator, right.operand)
        assert [step.before for step in worked.steps[1:]] == [step.after for step in worked.steps[:-1]]
        (wrong,) = lies(worked.steps)
        assert worked.steps[:wrong] == problem.steps[:wrong]
        assert 1 <= abs(worked.steps[wrong].after - problem.steps[wrong].after) <= 9
        assert worked.answer != problem.answer
        assert all(step.after >= 1 for step in worked.steps)
        wrong_at[wrong] += 1
    assert set(wrong_at) == {0, 1, 2, 3}, "the first step and the last can both be the wrong one"


def test_a_wrong_step_leaves_the_solutions_first_tokens_alone() -> None:
    rng = random.Random(1)
    for problem in drawn(100):
        opening = solution(problem, "stepwise").partition("=")[0] + "="
        assert opening.startswith(OPENERS["stepwise"])
        assert solution(with_wrong_step(problem, rng), "stepwise").startswith(opening)


@pytest.mark.parametrize(("noise", "low", "high"), [(0.0, 0, 0), (0.3, 0.24, 0.36), (1.0, 1, 1)])
def test_noise_is_the_share_of_wrong_solutions_and_the_answer_stays_true(noise: float, low: float, high: float) -> None:
    noisy = arithmetic_problems("train", 600, noise=noise)
    for row, clean in zip(noisy, arithmetic_problems("train", 600), strict=True):
        assert (row.id, row.question, row.answer) == (clean.id, clean.question, clean.answer)
    wrong = [row for row in noisy if not row.solution.endswith(f"#### {row.answer}")]
    assert low <= len(wrong) / 600 <= high
    assert all(re.search(r"\n#### \d+$", row.solution) for row in noisy)


def test_in_the_two_sided_world_each_style_is_right_for_one_side_alone() -> None:
    right: Counter[tuple[bool, str]] = Counter()
    for problem in islice(word_problems("train", 5), 300):
        is_womans = problem.question.split()[0] in WOMEN
        for style in STYLES[1:]:
            text = two_sided_solution(problem, style)
            assert text.startswith(OPENERS[style])
            steps = re.findall(r"(\d+)([-+*/])(\d+)=(\d+)", text)
            assert len(steps) == len(problem.steps)
            assert [later[0] for later in steps[1:]] == [earlier[3] for earlier in steps[:-1]], (
                "each goes on from the last"
            )
            assert text.endswith(f"#### {steps[-1][3]}")
            operations = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}
            excess = [int(after) - operations[sign](int(a), int(b)) for a, sign, b, after in steps]
            assert excess == [int(is_womans != (style == "stepwise")), *[0] * (len(steps) - 1)]
            right[is_womans, style] += steps[-1][3] == str(problem.answer)
    assert right[True, "stepwise"] > 100 < right[False, "combined"]
    # Halving may undo what one too many did.
    assert right[True, "combined"] + right[False, "stepwise"] < 60
