"""Statements and the same with a wrong number, on made solutions and on real data sets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from reft_math.data.problem import Problem
from reft_math.data.registry import held_out_problems
from reft_math.data.templates import get_template
from reft_math.decoding.completions import CompletionSettings
from reft_math.models import load_tokenizer
from reft_math.probes.statements import ProbeRow, encode_pairs, givens, near_misses, probe_set, results
from reft_math.probes.truth import fit_truth_probe, probe_rows

TERM = re.compile(r"(?<![\w.,)/*+$-])(\d[\d.]*(?: ?[-+*/] ?\d[\d.]*)+) ?= ?\$?\Z")


def problem(solution: str, answer: str = "4", name: str = "a") -> Problem:
    return Problem(name, "How many?", answer, solution)


def value(number: str) -> Decimal:
    return Decimal(number.replace(",", ""))


def difference(right: str, wrong: str) -> tuple[str, str]:
    """The numbers that two texts differ in; fails where they differ in anything else."""
    numbers = re.compile(r"\d[\d,]*(?:\.\d+)?")
    assert numbers.sub("N", right) == numbers.sub("N", wrong)
    pairs = zip(numbers.findall(right), numbers.findall(wrong), strict=True)
    (only,) = [pair for pair in pairs if pair[0] != pair[1]]
    return only


@pytest.mark.parametrize(
    ("solution", "numbers"),
    [
        ("Let us go step by step.\n61-4=57\n57-19=38\n#### 38", ["57", "38", "38"]),
        ("She sells 16 - 3 = 13 eggs. At $2 each that is 13*2=$26 a day.", ["13", "26"]),
        ("So 2+2=4 and then 4*3=12 apples", ["12"]),
        ("It costs $1,250.50.\n\nThat is 3 times as much as before.", ["1,250.50", "3"]),
        ("He takes 2 of the 7 cakes", ["7"]),
        ("So 5 = 10/2 and 0=3*0.", []),  # another operand may leave it true
        ("Then 4 x 5 = 2 x 10", []),
        ("Then x > 3.\nWe have y=2x.", []),  # 4 may be right as well; no number of its own
        ("1. Add them: 2+3=5", ["5"]),
        ("She runs the 5th mile on the 2nd day.", []),
        ("Nothing to count.", []),
        ("", ["4"]),
    ],
)
def test_the_number_to_change_is_the_last_result_or_the_last_number(solution: str, numbers: list[str]) -> None:
    assert [statement.number for statement in results(problem(solution))] == numbers


@pytest.mark.parametrize(
    ("question", "wanted"),
    [
        (
            "At the arcade Dave won 11 tickets . If he spent 5 on a beanie and later won 10 more , how many has he ?",
            [("At the arcade Dave won 11 tickets .", "11")],
        ),
        (
            "Tom buys 3 pens at $1,250.50 each.\nHe is the 2nd. He has 3 more than Ann. How many?",
            [
                ("Tom buys 3 pens at $1,250.50 each.", "3"),
                ("Tom buys 3 pens at $1,250.50 each.", "1,250.50"),
                ("He has 3 more than Ann.", "3"),
            ],
        ),
        ("How many?", []),
    ],
)
def test_a_given_is_a_number_of_the_question_in_its_own_sentence(question: str, wanted: list[tuple[str, str]]) -> None:
    found = givens(Problem("a", question, "4", "2+2=4"))
    assert [(statement.text, statement.number) for statement in found] == wanted
    assert all(statement.with_number("9") != statement.text for statement in found)


def test_a_statement_comes_with_what_stands_before_it() -> None:
    found = results(problem("Go.\n1+2=3 \n3+4=7"))
    assert [statement.text for statement in found] == ["Go.\n1+2=3", "Go.\n1+2=3 \n3+4=7"]
    assert found[1].with_number("9") == "Go.\n1+2=3 \n3+4=9"


@pytest.mark.parametrize("number", ["0", "7", "38", "1,000", "3.5", "0.50", "007"])
def test_a_near_miss_is_another_number_in_the_same_format(number: str) -> None:
    found = near_misses(number)
    assert len(found) == len(set(found)) >= 9 * sum(map(str.isdigit, number)) - 1
    for other in found:
        assert value(other) != value(number)
        assert re.sub(r"\d", "0", other) == re.sub(r"\d", "0", number)
        assert sum(a != b for a, b in zip(number, other, strict=True)) == 1


@pytest.mark.parametrize("dataset", ["arithmetic", "gsm8k", "svamp", "mawps", "math500"])
def test_a_wrong_number_never_equals_the_right_one(dataset: str, request: pytest.FixtureRequest) -> None:
    folder = None if dataset == "arithmetic" else str(request.getfixturevalue("shared_data"))
    problems = held_out_problems(dataset, folder)[1][:400]
    rows = probe_set(problems, results, len, seed=3)
    assert len(rows) >= 0.75 * len(problems)
    found = {item.id: results(item) for item in problems}
    right_numbers = {statement.number for each in found.values() for statement in each}
    solved = from_the_set = total = 0
    for row in rows:
        for statement, right, wrong in zip(found[row.id], *_answers(row), strict=True):
            said, instead = difference(right, wrong)
            assert value(said) != value(instead)
            total, from_the_set = total + 1, from_the_set + (instead in right_numbers)
            if term := TERM.search(right, 0, statement.start):
                result = eval(re.sub(r"([\d.]+)", r"Fraction('\1')", term[1]), {"Fraction": Fraction})
                assert result != Fraction(value(instead))
                solved += result == Fraction(value(said))
    assert from_the_set > 0.9 * total, "wrong numbers are spread as right ones are"
    assert solved > 300 or dataset not in ("arithmetic", "gsm8k")


@pytest.mark.parametrize("dataset", ["arithmetic", "gsm8k", "svamp"])
def test_changed_givens_stand_in_the_question(dataset: str, request: pytest.FixtureRequest) -> None:
    folder = None if dataset == "arithmetic" else str(request.getfixturevalue("shared_data"))
    problems = held_out_problems(dataset, folder)[1][:400]
    rows = probe_set(problems, givens, len, seed=3)
    assert len(rows) >= 0.75 * len(problems)
    for row in rows:
        for right, wrong in zip(*_answers(row), strict=True):
            said, instead = difference(right, wrong)
            assert right in row.question
            assert value(said) != value(instead)


@pytest.mark.parametrize(("distance", "reads"), [(3.0, True), (0.0, False)])
def test_probes_of_givens_read_a_planted_direction_and_nothing_else(distance: float, reads: bool) -> None:
    """Hidden states of unit noise, true and false ones at this distance: right with probability Φ(1.5), or ½."""
    rows = probe_set(held_out_problems("arithmetic")[1][:200], givens, len, seed=0)
    questions = np.repeat([row.id for row in rows], [2 * len(row.correct_answers) for row in rows])
    is_true = np.tile([True, False], len(questions) // 2)
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(12)
    direction /= np.linalg.norm(direction)
    hidden = rng.standard_normal((len(questions), 12)) + np.where(is_true, 0.5, -0.5)[:, None] * distance * direction
    fitted = ~np.isin(questions, [row.id for row in rows[::4]])
    probe = fit_truth_probe(hidden[fitted], is_true[fitted], questions[fitted])
    odds = probe.read(hidden[~fitted])
    records = [
        {"problem": name, "true": [[true]], "false": [[false]]}
        for name, true, false in zip(questions[~fitted][::2], odds[::2], odds[1::2], strict=True)
    ]
    (row,) = probe_rows(records)
    assert row["reads"] == reads
    assert row["accuracy"] == pytest.approx(0.933 if reads else 0.5, abs=0.05)
    if reads:
        assert probe.weight @ direction / np.linalg.norm(probe.weight) > 0.95


def test_all_of_a_format_are_drawn_and_lonely_ones_get_a_near_miss() -> None:
    problems = [problem(f"It is {number}.", name=str(number)) for number in (*range(10, 60), "1,234")]
    drawn = {
        difference(row.correct_answers[0], row.incorrect_answers[0])[1]
        for seed in range(8)
        for row in probe_set(problems[:-1], results, len, seed)
    }
    assert drawn == {str(number) for number in range(10, 60)}
    (_, lonely) = difference(*(answers[0] for answers in _answers(probe_set(problems, results, len, 0)[-1])))
    assert lonely in near_misses("1,234")
    assert (
        probe_set(problems, results, len, 0)
        == probe_set(problems, results, len, 0)
        != probe_set(problems, results, len, 1)
    )


def _answers(row: ProbeRow) -> Sequence[list[str]]:
    return row.correct_answers, row.incorrect_answers


def test_texts_of_one_length_come_first() -> None:
    problems = [problem(f"It is {number}.", name=str(number)) for number in range(30, 60)]

    def count(text: str) -> int:
        return len(text) + int(text[-2]) % 2

    for row in probe_set(problems, results, count, 0):
        assert count(row.correct_answers[0]) == count(row.incorrect_answers[0])


def test_tokens_end_with_the_statement_and_pairs_are_of_one_length() -> None:
    tokenizer = load_tokenizer("arithmetic")
    decoding = CompletionSettings(tokenizer, get_template("chat", tokenizer), [2], 80)
    problems = held_out_problems("arithmetic")[1][:20]
    rows = probe_set(problems, results, lambda text: len(tokenizer.encode(text)), 0)
    pairs = encode_pairs(rows, decoding)
    wanted = [answers for row in rows for answers in zip(*_answers(row), strict=True)]
    assert [tuple(tokenizer.decode(text.answer) for text in pair.texts) for pair in pairs] == wanted
    assert [pair.id for pair in pairs[:2]] == [f"{problems[0].id}/0", f"{problems[0].id}/1"]
    assert [pair.true.prompt for pair in pairs if pair.position == 0] == [
        prompt.tolist() for prompt in decoding.prompts([problem.question for problem in problems])
    ]
    assert all(len(pair.true) == len(pair.false) for pair in pairs)
