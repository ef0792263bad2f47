from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path

import pytest

from reft_math.errors import UserError
from reft_math.scoring.numeric import last_number, numbers_equal, score_numeric, stated_answer

GSM8K = Path(__file__).resolve().parents[4] / "shared" / "data" / "gsm8k" / "test.jsonl"


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("9 * 2 = 18\n#### 18", "18"),
        ("#### 18\nQuestion: a second one …\n#### 7", "18"),
        ("####18", "18"),
        ("####\n18", "18"),
        ("#### $1,234.50.", "1234.50"),
        ("#### -$5", "-5"),
        ("#### $-5", "-5"),
        ("#### \u22125", "-5"),
        ("#### **18** eggs", "18"),
        ("#### 25%", "25"),
        ("#### -€5", "-5"),
        ("#### –5", "-5"),
        ("#### +5", "5"),
        ("The answer is = 5", "5"),
        ("#### ₹5", "5"),
        ("#### `5`", "5"),
        ('The answer is "5".', "5"),
        ("The answer is __5__", "5"),
        (r"The answer is \[18\]", "18"),
        ("#### .5", ".5"),
        ("#### Step 1: add\n#### Step 2: done\n#### 42", "42"),
        (r"\boxed{3}, no, \boxed{1,234}", "1234"),
        (r"\boxed{7} then \boxed{x}", "7"),
        (r"\boxed{\$18}", "18"),
        (r"\boxed{1{,}234\%}", "1234"),
        (r"\boxed{18\,\text{ dollars}}", "18"),
        (r"\boxed{18\text{ m}^2}", "18"),
        (r"\boxed{18\ \text{m}^{3}}", "18"),
        (r"\boxed{18^\circ}", "18"),
        (r"\boxed{18^{\circ}}", "18"),
        (r"\boxed{18\!°}", "18"),
        (r"\boxed{18€}", "18"),
        (r"\boxed{4} and #### 5", "5"),
        ("The answer is 18.", "18"),
        ("the answer is 3. Wait. The final answer is: **$1,800.00**.", "1800.00"),
        (r"The answer is \(18\).", "18"),
        (r"The answer is 3, \boxed{4}", "4"),
        ("The answer is (A) 5", None),
        ("The answer is 5/8.", None),
        ("The answer is 12 / 5.", None),
        ("#### 5 + 3 = 8", None),
        ("#### 10-15", None),
        ("#### 5–6", None),
        ("#### 5 - $3", None),
        ("#### 5 * (3 + 1)", None),
        ("#### 5(3)", None),
        ("#### 5 x 10^3", None),
        ("#### 5x10", None),
        ("#### 5 ± 1", None),
        (r"#### 5 \pm 1", None),
        ("#### 5·5", None),
        ("The answer is 5 or 6", None),
        ("The answer is 5 to 6", None),
        ("The answer is $5 and $6", None),
        ("#### 5, 6", None),
        ("#### 5  8", None),
        ("#### 5; 6", None),
        ("#### 0.(3)", None),
        (r"#### 0.\overline{3}", None),
        (r"#### 5\sqrt{2}", None),
        ("#### 5√2", None),
        (r"\boxed{5\pi}", None),
        ("#### 5π", None),
        (r"\boxed{5!}", None),
        (r"\boxed{5x^2}", None),
        (r"\boxed{5x^n}", None),
        ("### 5", None),
        ("boxed{5}", None),
        ("The preanswer is 5", None),
        ("The answer is_5", None),
        ("THE ANSWER IS 5", "5"),
        (r"\boxed{5\text{ m}^3}", "5"),
        (r"\boxed{5\text{ m}^{2}}", "5"),
        (r"\boxed{5\text{ m}^{3}8}", None),
        (r"\boxed{5\text{8}}", None),
        (r"#### 5^\frac{1}{2}", None),
        ("#### 3 1/2", None),
        ("#### 12,5", None),
        ("#### 1,2,3", None),
        ("#### 1 234", "1234"),
        ("#### 18 5", None),
        (r"#### 5 \times 3", None),
        ("#### 5²", None),
        (r"\boxed{\frac{1}{2}}", None),
        (r"\boxed{18\frac{1}{2}}", None),
        (r"\boxed{3 + 4}", None),
        ("There are 18 eggs.", None),
        ("", None),
    ],
)
def test_stated_answer(completion: str, expected: str | None) -> None:
    assert stated_answer(completion) == expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("It costs $1,234.50.", "1234.50"),
        ("That is 18.", "18"),
        ("x = -3", "-3"),
        ("-3", "-3"),
        ("(-3)", "-3"),
        ("a loss of -$4", "-4"),
        ("a loss of -£4", "-4"),
        ("a loss of –4", "-4"),
        ("from 3–4", "4"),
        ("5-3", "3"),
        ("5 - 3", "3"),
        ("$5-$3", "3"),
        ("(a+b)-3", "3"),
        ("step-2", "2"),
        ("a 2-step plan", "2"),
        ("from 3 to 1, 2, 3", "3"),
        ("from 3 to 1,2,3", None),
        ("1,234,567", "1234567"),
        ("12,3456", None),
        ("1234,567", None),
        (r"1,\!234", "1234"),
        ("50% off", "50"),
        ("about .75", ".75"),
        ("wait...5", "5"),
        ("version 1.2.3", None),
        ("It is 5/8", None),
        ("$18/day", "18"),
        ("at 60/3 = 20", "20"),
        (r"3\frac{1}{2}", None),
        ("3 1/2", None),
        (r"\sqrt{16}", None),
        ("2^{10}", None),
        ("5²", None),
        ("3½", None),
        ("18 m^2", "18"),
        ("18^\\circ", "18"),
        ("12,5", None),
        ("at 10:30", None),
        ("0.(3)", None),
        (r"0.\overline{3}", None),
        (r"5\pi", None),
        ("5π", None),
        (r"1\ 234", "1234"),
        ("1~234", None),
        ("1'234", "1234"),
        ("1 234 567", "1234567"),
        ("1.5e3", "1500"),
        ("1e999999", None),
        ("１８", "18"),
        ("1\u200b8", "18"),
        ("none", None),
        ("", None),
    ],
)
def test_last_number(completion: str, expected: str | None) -> None:
    assert last_number(completion) == expected


@pytest.mark.parametrize(
    "rest",
    [
        *(
            "/8",
            " / 8",
            "/$8",
            r"/\$8",
            "/(8)",
            "*8",
            "**8",
            " ** 8",
            " + 8",
            " - 8",
            "-{8}",
            "\t-\t8",
            "= 8",
            "x8",
            ", 8",
        ),
        *(
            "; 8",
            "×8",
            "÷8",
            "±8",
            "·8",
            "⋅8",
            "%-8",
            r"\%-8",
            " or 8",
            " and 8",
            " to 8",
            " or £8",
            "(8)",
            " 8",
            "\t8",
        ),
        *(r"\times 8", r"\cdot8", r"\div 8", r"\pm 8", " 1/2", "^8", "^n", " ^ 8", r"^\frac12", "\t^8"),
        *(
            ".5.5",
            ",5",
            ",000:8",
            "'8",
            "’8",
            "_8",
            "_{8}",
            "~8",
            "{,}5",
            ".(8)",
            ",000e8",
            ",000E8",
            ",000e-8",
            ",000e+8",
        ),
        *(r"\frac12", r"\dfrac12", r"\tfrac12", r"\cfrac12", r"\sqrt2", r"\pi", "π", "√2", " π"),
    ],
)
def test_a_number_that_is_not_alone_is_not_stated(rest: str) -> None:
    assert stated_answer(f"#### 5{rest}") is None


@pytest.mark.parametrize(
    "rest",
    [*(".", ". 8", " (8 each)", "\n8", "% of 8", " x", " - x", " is it", "^\\circ", "\\,", "e", "!", ",", ":"), ""],
)
def test_a_number_that_is_alone_is_stated_whatever_follows(rest: str) -> None:
    assert stated_answer(f"#### 5{rest}") == "5"


@pytest.mark.parametrize(
    "lead", ["", " ", "\n", ":", "=", "+", "*", "_", "`", '"', "(", r"\(", r"\[", "$", r"\$", *"£€¥₹"]
)
def test_what_may_stand_before_a_stated_number(lead: str) -> None:
    assert stated_answer(f"####{lead}5") == "5"


@pytest.mark.parametrize(
    "rest", [" ", r"\,", r"\ ", r"\%", "$", *"°£€¥₹.*)", r"\!", "kg", "KG", r"^\circ", r"\text{ m}^{3}"]
)
def test_what_may_stand_behind_a_boxed_number(rest: str) -> None:
    assert stated_answer(rf"\boxed{{5{rest}}}") == "5"


@pytest.mark.parametrize(
    "before",
    [
        *(
            "5.5.",
            "5,",
            "5:",
            "5'",
            "5’",
            "5_",
            "5_{",
            "5~",
            "5{,}",
            "5.(",
            "5/",
            "5 / ",
            "5/{",
            "5/(",
            "5\t/\t",
            ")/",
            "]/",
        ),
        *("}/", "5^", "x)^", "5^{", "5^(", "5^-", "5^+", "5**", ",5e", "1,234e", "1,234E", "1,234e-", "1,234e+", "√"),
        *(
            r"\frac",
            r"\frac{",
            r"\frac{x}{",
            r"\frac{12}{",
            r"\frac3",
            r"\frac3{",
            "sqrt(",
            "√(",
            r"\dfrac{",
            r"\tfrac{",
            r"\cfrac{",
            r"\sqrt",
            r"\sqrt{",
            r"\sqrt[n]{",
            r"\sqrt[12]{",
        ),
    ],
)
def test_a_part_of_a_number_is_no_last_number(before: str) -> None:
    assert last_number(f"{before}8") is None


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        *(
            ("18 m^{12}", "18"),
            ("18 M^2", "18"),
            ("18 M^{2}", "18"),
            ("18 x_2", "18"),
            ("18 x_{2}", "18"),
            ("18 X_12", "18"),
        ),
        *(
            ("[a]-3", "3"),
            ("x^{a}-3", "3"),
            ("50%-3", "3"),
            (r"-\$3", "-3"),
            ("-¥3", "-3"),
            ("p.5", "5"),
            ("1234.56", "1234.56"),
        ),
        *(("1,234.56", "1234.56"), ("a/8", "8"), ("type-8", "8"), ("5. 8", "8"), ("x = 8", "8")),
    ],
)
def test_what_belongs_to_a_number_and_what_does_not(completion: str, expected: str) -> None:
    assert last_number(completion) == expected


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("18", "18.00", True),
        ("1,234", "1234", True),
        ("$18", "18", True),
        ("-0", "0", True),
        ("5", "15", False),
        ("15", "5", False),
        ("3", "-3", False),
        ("0.3", "0.30000", True),
        ("0.30001", "0.3", False),
        ("18.000000001", "18", False),
        ("18.001", "18.000000000", False),
        ("1.833", "1.8333333333333335", True),
        ("1.83333", "1.8333333333333335", True),
        ("1.83", "1.8333333333333335", False),
        ("2", "1.8333333333333335", False),
        ("0.00041667", "0.0004166666666", True),
        ("0", "0.0004166666666", False),
        ("100000000000000000000000000001", "100000000000000000000000000002", False),
        ("9" * 1_100_000, "1.8333333333333335", False),
    ],
)
def test_numbers_equal(answer: str, gold: str, expected: bool) -> None:
    assert numbers_equal(answer, gold) is expected


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("0.333", "0.333333", False),  # six decimals may be an answer written out
        ("0.3333", "0.3333333", True),
        ("0.9990000999", "1.0000001", True),  # gold less a thousandth of it, and the next number
        ("0.9990000998", "1.0000001", False),
        ("1.0010001001", "1.0000001", True),
        ("1.0010001002", "1.0000001", False),
    ],
)
def test_the_tolerance_begins_at_seven_decimals_and_has_both_ends(answer: str, gold: str, expected: bool) -> None:
    assert numbers_equal(answer, gold) is expected


def test_tolerance_agrees_with_fractions() -> None:
    gold = Fraction(11, 6)
    for thousandths in range(1700, 2000):
        answer = Fraction(thousandths, 1000)
        expected = abs(answer - gold) <= gold / 1000
        assert numbers_equal(str(thousandths / 1000), "1.8333333333333335") is expected


@pytest.mark.parametrize("gold", ["", "1/2", r"\frac{1}{2}", "nan", "inf", "18 eggs"])
def test_gold_must_be_a_number(gold: str) -> None:
    with pytest.raises(UserError, match=r"expected one such as .*; score other answers with math-verify$"):
        score_numeric("no number", gold)


def test_score_tells_stated_from_last() -> None:
    assert score_numeric("#### 5\nNext: 15", "5") == {
        "strict": True,
        "flexible": False,
        "stated": "5",
        "last_number": "15",
    }
    assert score_numeric("It is 5", "5") == {"strict": False, "flexible": True, "stated": None, "last_number": "5"}
    assert score_numeric("", "5") == {"strict": False, "flexible": False, "stated": None, "last_number": None}


@pytest.mark.skipif(not GSM8K.exists(), reason=f"needs {GSM8K}")
def test_every_gsm8k_reference_is_right_for_its_gold_and_wrong_for_the_next_number() -> None:
    answers = [json.loads(line)["answer"] for line in GSM8K.read_text(encoding="utf-8").splitlines()]
    assert len(answers) == 1319
    for answer in answers:
        completion = re.sub(r"<<.*?>>", "", answer)
        gold = answer.split("####")[1].strip()
        score = score_numeric(completion, gold)
        assert (score["strict"], score["flexible"]) == (True, True), answer
        other = score_numeric(completion, str(int(gold.replace(",", "")) + 1))
        assert (other["strict"], other["flexible"]) == (False, False), answer
