"""Equations in running text, in the styles of GSM8K, of chat models and of the embedded world."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from reft_math.data.registry import held_out_problems
from reft_math.probes.equations import equations
from reft_math.probes.statements import near_misses, probe_set, results


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("47+38=85", {"47+38=85": True}),
        ("In one line: (23+14)*2-18=57", {"(23+14)*2-18=57": False}),
        ("It is 5*3=<<5*3=15>>15 or 5 x 3 = 16.", {"5*3=<<5*3=15>>15": True, "5 x 3 = 16": False}),
        ("She makes $<<9*2=17>>17 a day.", {"9*2=17": False}),
        ("So $5 × 3 = $15 and $1,250.50 − 250 = $1,000.50", {"5 × 3 = $15": True, "1,250.50 − 250 = $1,000.50": True}),
        (r"\( 5 \times 3 = 15 \), \[ \frac{10}{2} = 6 \]", {r"5 \times 3 = 15": True, r"\frac{10}{2} = 6": False}),
        (r"\text{Eggs left} = 16 - 3 - 4 = 9", {"16 - 3 - 4 = 9": True}),
        (r"\left(2 + 3\right) \cdot 4 &= 20 \\" "\n" r"&= 21", {r"(2 + 3\right) \cdot 4 &= 20": True}),
        ("16 eggs/day - 3 eggs (for breakfast) = 13 eggs", {"16 eggs/day - 3 eggs (for breakfast) = 13": True}),
        ("5*3 = 15+2 = 18", {"5*3 = 15+2": True, "15+2 = 18": False}),
        (
            "20% of 50 = 10, 80 - 25% = 60, 3/4 = 75%",
            {"20% of 50 = 10": True, "80 - 25% = 60": True, "3/4 = 75%": True},
        ),
        ("30 x 20% = 7", {"30 x 20% = 7": False}),
        ("10/3 = 3.33, 20/3 = 6.66, 10/4 = 2.6", {"10/3 = 3.33": True, "20/3 = 6.66": True, "10/4 = 2.6": False}),
        ("47 * 21 ≈ 1,000 ≈ 1,100", {"47 * 21 ≈ 1,000": True}),
        (
            "1 1/2 * 4 = 6, 28 / 1/7 = 196, 2^3*3 = 24",
            {"1 1/2 * 4 = 6": True, "28 / 1/7 = 196": True, "2^3*3 = 24": True},
        ),
        ("- 5 + 3 = 8\n2. 5 - 3 = 2\n-5 + 3 = -2", {"5 + 3 = 8": True, "5 - 3 = 2": True, "-5 + 3 = -2": True}),
        # Nothing is stated, or nothing that is plainly arithmetic.
        ("x = 5, 2x + 3 = 7, 5 = x + 2, 3y = 4 * 2x, a - 5 + 3 = 9", {}),
        ("5 dozen = 60, 50% = 0.5, 10:30 - 9 = 2, half of 16 + 4 = 12", {}),
        ("cost - 5 = 3, 5 + his 2 = 9, 5/0 = 3, (2 + 3 = 7", {"2 + 3 = 7": False}),
        ("=", {}),
    ],
)
def test_equations_of_a_text(text: str, stated: dict[str, bool]) -> None:
    found = equations(text)
    assert {text[equation.start : equation.stop]: equation.is_true for equation in found} == stated


@pytest.mark.parametrize(
    ("text", "places"),
    [
        (r"\( 6 \times 2.50 = 150 \)", 1),
        (r"\( \frac{2300}{20} = 1150 \)", 1),
        ("400 x 1.10 = $44,000", 2),
        ("100 * 0.02 = 0.2", -1),
        ("6 * 10 = 60", 0),
        ("6 * 10 = 61", 0),
        ("6 * 10 = -600", 0),
        ("3 - 3 = 10", 0),
        ("5 * 4 = 0", 0),
    ],
)
def test_decimal_slips(text: str, places: int) -> None:
    (equation,) = equations(text)
    assert equation.decimal_slip == places


@pytest.mark.parametrize(
    "text",
    ["(" * 5000 + "1+1=2", "1+" * 5000 + "1=2", "9" * 5000 + "+1=2", "9^9^9^9=1", "\n" * 5000, "0 + 0 ≈ 0", "-" * 5000],
)
def test_hostile_texts_are_read_in_no_time(text: str) -> None:
    assert all(equation.is_true for equation in equations(text))


def test_results_of_the_embedded_world_are_true_and_others_false() -> None:
    for row in probe_set(held_out_problems("arithmetic")[1][:200], results, len, seed=0):
        for right, wrong in zip(row.correct_answers, row.incorrect_answers, strict=True):
            assert all(equation.is_true for equation in equations(right))
            if "=" in right.splitlines()[-1]:
                assert [equation.is_true for equation in equations(wrong)][-1:] == [False]


def test_gsm8ks_solutions_are_true_and_not_with_another_result(shared_data: Path) -> None:
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()[:400]
    rng = random.Random(0)
    true, false, missed = 0, [], 0
    for line in lines:
        text = re.sub("<<.*?>>", "", json.loads(line)["answer"])
        for equation in equations(text):
            if not equation.is_true:
                false.append(text[equation.start : equation.stop])
            elif equation.result is not None:
                true += 1
                number = rng.choice(near_misses(equation.result.text))
                other = text[: equation.result.start] + number + text[equation.result.stop :]
                missed += all(found.is_true for found in equations(other) if found.start == equation.start)
    assert true > 1200
    assert false == []
    assert missed < 0.002 * true
