"""Hostile answers are never right, cost no more than their limit and run nothing; right ones stay right as rewritten.

`tests/hostile_answers.py` makes them, and runs all of them by itself: math-verify's share here is a part.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reft_math.scoring.math_equivalence import MathVerifier, compare
from reft_math.scoring.notation import plain_numbers
from reft_math.scoring.numeric import last_number, score_numeric

TESTS = Path(__file__).resolve().parents[2]
COSTLY = ("tower", "factorial", "computation", "long", "deep")

repeatable = settings(derandomize=True, deadline=None, database=None, max_examples=100)
few = settings(repeatable, max_examples=30)

# How a number is stated: the same number to a reader, whatever stands around it.
STATED = (
    *("#### {}", "####{}.", "#### ${}", "#### {} eggs"),
    *(r"\boxed{{{}}}", r"so $\boxed{{{}}}$", r"\boxed{{{}\text{{ eggs}}}}"),
    *("The answer is {}.", "the answer is: **{}**", r"The answer is \({}\)"),
)
UNSTATED = ("It costs {} dollars.", "= {}", "so x={}", "{}", "about {}kg", "${}$", "({})")
IN_MATH = (
    *("${}$", r"\boxed{{{}}}", r"\[{}\]", r"So \({}\).", r"The answer is $\boxed{{{}}}$."),
    *(r"$\ {} \ $", r"${}\text{{ cm}}$"),
)
GAPS = (",", "'", "’", "\u00a0", "\u2009", "\u202f", r"\,", "{,}", r",\!", "")
DIGITS = ("0123456789", "０１２３４５６７８９", "٠١٢٣٤٥٦٧٨٩", "𝟎𝟏𝟐𝟑𝟒𝟓𝟔𝟕𝟖𝟗")


@st.composite
def numbers(draw: st.DrawFn, gaps: tuple[str, ...] = GAPS) -> tuple[str, str]:
    """A number in plain decimal notation, and the same number as somebody might write it."""
    value, decimals = draw(st.integers(0, 10**9)), draw(st.sampled_from(["", ".5", ".25", ".07"]))
    whole = f"{value:,}".replace(",", draw(st.sampled_from(gaps)))
    zeros = draw(st.sampled_from(["", "0", "00"])) if decimals else draw(st.sampled_from(["", ".0", ".00"]))
    sign = draw(st.sampled_from(["", "-", "\u2212"]))
    digits = str.maketrans("0123456789", draw(st.sampled_from(DIGITS)))
    return f"{'-' if sign else ''}{value}{decimals}", (sign + whole + decimals + zeros).translate(digits)


@st.composite
def changed(draw: st.DrawFn, number: str) -> str:
    """The number with another digit in one place, its value another: -0 is 0."""
    place = draw(st.sampled_from([index for index, char in enumerate(number) if char.isdigit()]))
    digit = draw(st.sampled_from([char for char in "0123456789" if char != number[place]]))
    return number[:place] + digit + number[place + 1 :]


@repeatable
@given(numbers(), st.sampled_from(STATED))
def test_a_right_number_stays_right_however_it_is_written_and_stated(number: tuple[str, str], frame: str) -> None:
    gold, written = number
    score = score_numeric(frame.format(written), gold)
    assert (score["correct"], score["strict"], score["flexible"]) == (True, True, True)


@repeatable
@given(numbers(), st.sampled_from(UNSTATED))
def test_a_right_last_number_stays_right_however_it_is_written(number: tuple[str, str], frame: str) -> None:
    gold, written = number
    assert score_numeric(f"First 7 of them. {frame.format(written)}", gold)["flexible"]


@repeatable
@given(st.data(), numbers(), st.sampled_from((*STATED, *UNSTATED)))
def test_another_digit_makes_a_number_wrong(data: st.DataObject, number: tuple[str, str], frame: str) -> None:
    score = score_numeric(frame.format(number[1]), data.draw(changed(number[0])))
    assert (score["correct"], score["strict"], score["flexible"]) == (False, False, False)


@few
@given(numbers((",", "'", "\u202f", r"\,", "{,}", "")), st.sampled_from(IN_MATH))
def test_a_right_number_stays_right_to_math_verify(number: tuple[str, str], frame: str) -> None:
    assert compare(number[0], frame.format(number[1])).is_correct


@few
@given(st.data(), numbers((",", "'", "\u202f", r"\,", "{,}", "")), st.sampled_from(IN_MATH))
def test_another_digit_makes_a_number_wrong_to_math_verify(
    data: st.DataObject, number: tuple[str, str], frame: str
) -> None:
    assert not compare(data.draw(changed(number[0])), frame.format(number[1])).is_correct


SPELLINGS: tuple[Callable[[int, int], str], ...] = (
    lambda a, b: rf"\frac{{{a}}}{{{b}}}",
    lambda a, b: rf"\dfrac {{{a}}} {{{b}}}",
    lambda a, b: f"{a}/{b}",
    lambda a, b: rf"\frac{{{2 * a}}}{{{2 * b}}}",
    lambda a, b: rf"{a // b}+\frac{{{a % b}}}{{{b}}}",
    lambda a, b: rf"{a} \cdot {b}^{{-1}}",
)


@few
@given(st.integers(1, 99), st.integers(2, 99), st.sampled_from(SPELLINGS), st.sampled_from(IN_MATH[:5]))
def test_a_fraction_is_right_however_it_is_written_and_another_is_wrong(
    a: int, b: int, spelling: Callable[[int, int], str], frame: str
) -> None:
    value = Fraction(a, b)
    gold = rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    assert compare(gold, frame.format(spelling(a, b))).is_correct
    assert not compare(gold, frame.format(spelling(a + 1, b))).is_correct


@repeatable
@given(st.text(max_size=200))
def test_any_text_is_scored_and_its_numbers_spelt_once(text: str) -> None:
    found = last_number(text)
    assert found is None or last_number(found) == found
    assert not score_numeric(text, "-987654.321")["flexible"]
    assert not any(char.isdecimal() and char not in "0123456789" for char in plain_numbers(text))


def test_there_are_hundreds_of_hostile_answers_and_always_the_same(hostile_answers: Callable[..., list]) -> None:
    answers = hostile_answers(0)
    assert len(set(answers)) >= 500
    assert answers == hostile_answers(0)
    assert len(Counter(answer.kind for answer in answers)) >= 12


def test_no_hostile_answer_is_right_as_a_number(hostile_answers: Callable[..., list]) -> None:
    """Of several numbers the last one counts, so "several" is for math-verify."""
    answers = [each for each in hostile_answers(size=20_000) if each.kind != "several"]
    answers = [each for each in answers if last_number(each.gold) == each.gold]
    assert len(answers) > 500
    scores = [score_numeric(each.completion, each.gold) for each in answers]
    assert [each for each, score in zip(answers, scores, strict=True) if score["strict"] or score["flexible"]] == []


@pytest.mark.slow
def test_no_hostile_answer_is_right_to_math_verify(hostile_answers: Callable[..., list]) -> None:
    answers = hostile_answers()
    cheap = [each for each in answers if each.kind not in COSTLY]
    # A costly one takes its whole limit, and a new worker after it; the others must not come near theirs.
    costly = [next(each for each in answers if each.kind == kind) for kind in ("factorial", "long")]
    with MathVerifier(num_workers=1, time_limit=1) as verifier:
        verdicts = verifier.score([(each.gold, each.completion) for each in costly])
    assert all(verdict.unscored for verdict in verdicts)
    with MathVerifier(num_workers=1, time_limit=60) as verifier:
        verdicts += verifier.score([(each.gold, each.completion) for each in cheap[::5]])
    assert [each for each, verdict in zip([*costly, *cheap[::5]], verdicts, strict=True) if verdict.is_correct] == []
    assert not any(verdict.unscored for verdict in verdicts[len(costly) :])


def test_no_completion_is_run_as_code() -> None:
    """Python tells of all that is compiled, run, started or written; only numbers are evaluated."""
    script = """
import sys
sys.path.insert(0, sys.argv[1])
from hostile_answers import CANARY, hostile_answers
from reft_math.scoring.math_equivalence import compare
for completion in ("1 + 1", r"$\\sqrt{16}$", "$2x+1$"):  # else sympy's own modules are seen as they load
    compare("3x+2", completion)
names, events = set(), []

def watch(event, args):
    if event == "exec" and args[0].co_filename == "<string>":
        names.update(args[0].co_names)
    if event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"):
        events.append(event)
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        events.append(args)

sys.addaudithook(watch)
for answer in hostile_answers():
    if answer.kind in ("code", "unbalanced", "fractions"):
        compare(answer.gold, answer.completion)
assert not events, events
own = {name for name in names if name.startswith("monomial_")}  # code that sympy makes, of no text
assert names - own <= {"sympy", "Integer", "Float"}, names
assert not CANARY.exists()
eval("__import__('os').system('true')")
assert events == ["os.system"] and "__import__" in names, "the watch sees nothing"
"""
    result = subprocess.run([sys.executable, "-c", script, TESTS], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
