from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from reft_math.errors import UserError
from reft_math.scoring.numeric import last_number, numbers_equal, score_numeric, stated_answer

SHARED = Path(__file__).resolve().parents[4] / "shared"
GSM8K = SHARED / "data" / "gsm8k"
CASES = SHARED / "cases" / "numeric.jsonl"


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
        ("1~234", "1234"),
        ("5~8", "8"),
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


@pytest.mark.parametrize(
    ("completion", "stated", "last"),
    [
        ("#### 5\nNext: 15", "5", "15"),
        ("It is 5", None, "5"),
        (r"Claire will eat $\boxed{5}$ dozens of eggs in 4 weeks.", "5", "4"),
        (r"In \boxed{4} weeks, that is 5", "4", "5"),
        ("5 or 5 is the answer is 5 or 4", None, "4"),
        ("", None, None),
    ],
)
def test_correct_is_the_stated_answer_and_where_none_is_stated_the_last_number(
    completion: str, stated: str | None, last: str | None
) -> None:
    assert score_numeric(completion, "5") == {
        "correct": (stated or last) == "5",
        "strict": stated == "5",
        "flexible": last == "5",
        "stated": stated,
        "last_number": last,
    }


# Kinds of writing, each as models write it; ⏎ is a new line, and | stands between two.
STATED_18 = {
    "units": r"""
        \boxed{18\text{ m}^2} | \boxed{18\text{ m}^{2}} | \boxed{18 \mathrm{~cm}^{2}} | \boxed{18 m^2} |
        \boxed{18 ft2} | \boxed{18ft2} | \boxed{18\text{ cm}^2\text{ of paint}} | \boxed{18\text{ sq. ft.}} |
        \boxed{18\text{ km/h}} | \boxed{18\ \frac{\text{miles}}{\text{hour}}} | \boxed{18\,\text{m}\cdot\text{s}^{-1}} |
        \boxed{18\text{ (eggs)}} | \boxed{18\text{-egg}} | \boxed{18^\circ\text{C}} | \boxed{18\text{ percent}} |
        \boxed{\text{\$18}} | \boxed{\text{\$}18} | Answer: US$18 | Answer: USD 18 | #### 18 ft2 | #### 18 m²""",
    "spaces": r"""
        \boxed{18~\text{apples}} | \boxed{\,18\,} | \boxed{\;18\;} | \boxed{18\:\mathrm{m}} | \boxed{~18~} |
        \boxed{\ 18\ } | \boxed{\quad 18\qquad} | \boxed{\!18\!} | \boxed {18} | \boxed{ 18 } | #### ~18 |
        \boxed{18\thinspace\text{m}} | #### 18&nbsp;m | \boxed{18\hspace{1mm}\text{m}}""",
    "fonts": r"""
        \boxed{\text{18 apples}} | \boxed{\text{ 18 }} | \boxed{\mathbf{18}} | \boxed{\textbf{\text{18 eggs}}} |
        \boxed{\boldsymbol{18}} | \boxed{\textcolor{red}{18}} | \boxed{\color{blue}{18}} | \boxed{\mbox{18 m}} |
        \fbox{18} | \boxed{{18}} | \boxed{{\bf 18}} | The answer is $\mathbf{18}$. | #### \text{18 apples}""",
    "names": r"""
        \boxed{x = 18} | \boxed{x_1=18\text{ apples}} | \boxed{\text{Area} = 18} | \boxed{\text{Total: } \$18} |
        \boxed{\text{Answer: }18} | \boxed{\text{The answer is }18} | The answer is x = 18. | #### x = 18""",
    "headings": r"""
        #### 1. Add⏎2+3=5⏎#### 18 | #### Step 1⏎#### 18. | #### Step 1: 5⏎#### **18** eggs | #### 18 eggs |
        #### Answer: 18 | #### Answer: $18 | #### **Answer:** 18 | #### **Answer: 18** | #### Final Answer⏎18 |
        #### Final Answer: 18 | ### Answer: 18 | ## Final Answer⏎⏎**18** | #### Answer⏎⏎18 | #### <18> |
        #### The answer: 18 | #### The answer is 18 | #### <answer>18</answer> | #### Answer: 18⏎#### 5""",
    "Answer:": r"""
        Answer: 18 | Answer: $18. | Answer: 18 miles. | Answer: **18 miles**. | **Answer:** 18 | **Answer**: $18 |
        *Answer:* 18 | __Answer:__ 18 | Answer : 18 | ANSWER: 18 | Answer：18 | Final Answer: 18 | Ans: 18 |
        Answer: \(18\) | Answer: \[18\] | Answer: $18$. | Answer:⏎⏎18 dollars | Answer: 18% | Answer: 18 (all) |
        The answer: 18 | Correct answer: 18 | {"answer": "18"} | <answer>⏎18⏎</answer> | Answer: x = 18 |
        Answer: 18. Each day she sells 9. | Answer: 18 miles. He walks 5 a day. | Answer: 18 dozens in 4 weeks. |
        Answer: 5⏎No.⏎Answer: 18 | Answer: 5. Or rather, the answer is 18""",
    "answer is": r"""
        The answer is therefore 18. | The answer to the question is 18. | The answer would be 18. | Answer was 18 |
        The answer is approximately 18. | The answer is⏎18 | the final answer is $18$. I hope it is correct. |
        The answer is 18. She makes 5 more. | The answer is 18 because 9 * 2 = 18""",
}
STATED_NOTHING = {
    "headings": r"""
        #### 1. Add the coins | #### 1) Add | #### (2) Add | #### 1: Add | #### 1 - Add | #### 1 – Add | #### 1 — Add |
        #### **1. Add** | #### **1.** Add | #### 1. **Add** | #### 1. _Add_ | #### 1.Add | #### 1. "Add" |
        #### 1. $x$ is | #### 1. \(x\) is | #### Step 1: Add | #### Step 1. | #### 1st step: add |
        #### **Step 2: Halve** | #### Part 2: 5 coins | #### 2nd: halve | #### 1.1. Add | #### 10. Add |
        #### 1. 20 + 5 = 25 | #### 2. Halve 25 / 2 = 12.5 | #### Question 3 | ####⏎1. Add""",
    "solutions": r"""
        Answer: 1. Janet has 16 eggs. | Answer:⏎1. Janet has 16 eggs. | Answer: 16 - 3 - 4 = 9 | Answer: 5/8 |
        Answer: 5 apples + 3 apples = 8 apples | Answer: 2 cm x 4 hours = 8 cm | Answer: She has 5 apples. |
        Answer: 5 apples and 3 more make = 8 | Answer: 3 eggs are eaten for breakfast. 4 are used. So 9. |
        #### 5x = 10 | 2 points/answer = 48 | The answer is 20 apples - 5 apples = 15 apples | #### 2 cm plus 4 cm""",
    "lists": r"""
        Answer: 5 apples or 6 apples | Answer: 5 apples and 6 pears | Answer: 10 / 50 / 30 | Answer: 1-5 minutes |
        Answer: 100 Hz, 300 Hz, 500 Hz. | \boxed{18\text{ or }19} | \boxed{18 \text{ apples}, 3 \text{ pears}} |
        #### 0,1,2 | #### 0, 125 | \boxed{18\text{ hours and }30\text{ minutes}}""",
    "no answers": r"""
        \boxed{5x} | \boxed{5 y} | \boxed{5x^{2}} | The answer isn't 5. | The answer is not 5. | The answers: 5 |
        unanswered: 5 | Ans. 5 | A: 5 | \boxed{5\text{ m}^2 8} | \boxed{{10}^{6}}""",
}


def tabled(table: dict[str, str]) -> list[ParameterSet]:
    rows = [(kind, text.strip()) for kind, texts in table.items() for text in texts.split("|")]
    return [pytest.param(text.replace("⏎", "\n"), id=f"{kind}-{text}") for kind, text in rows]


@pytest.mark.parametrize("completion", tabled(STATED_18))
def test_what_states_18(completion: str) -> None:
    assert stated_answer(completion) == "18"


@pytest.mark.parametrize("completion", tabled(STATED_NOTHING))
def test_what_states_nothing(completion: str) -> None:
    assert stated_answer(completion) is None


@pytest.mark.parametrize("frame", ["#### {}", r"\boxed{{{}}}", "The answer is {}.", "Answer: {} kg", "It is {}"])
@pytest.mark.parametrize(
    ("written", "value"),
    [
        *(("0,125", "0.125"), ("0,5", "0.5"), ("-0,5", "-0.5"), ("0,1250", "0.1250"), ("0{,}125", "0.125")),
        *(("$0,75", "0.75"), (r"0,\!125", "0.125"), ("10,125", "10125"), ("1,234,567", "1234567")),
        *((r"18\,000", "18000"), ("18~000", "18000"), (r"18\ 000", "18000"), (r"18,\!000", "18000"), ("12,5", None)),
    ],
)
def test_a_comma_behind_a_lone_zero_is_a_decimal_point(frame: str, written: str, value: str | None) -> None:
    text = frame.format(written)
    assert (last_number(text) if frame.startswith("It") else stated_answer(text)) == value


@pytest.mark.parametrize(("gold", "is_right"), [("0.125", True), ("0,125", True), ("125", False), ("0125", False)])
def test_a_gold_with_a_decimal_comma_is_read_alike(gold: str, is_right: bool) -> None:
    assert score_numeric("#### 0,125", gold)["correct"] is is_right


@pytest.mark.parametrize(
    "unit",
    [
        *(r"\,\mathrm{cm}^2", r"\text{ cm}^{3}", " ft2", " ft2.", "ft2", " m2", " cm3", " km2 of land", " in2", " mi2"),
        *(" m²", " m^2", " cm$^2$", " cm<sup>2</sup>", r" $\text{m}^2$", " ft.^2", " ft ^2", " m s^-1", " m s^{-2}"),
        *(" m/s²", " units2", r"\ \text{units}^2", r"~m^2", "~apples", "\u00a0m", "\u2009m", " kg of CO2", " x_{12}"),
    ],
)
def test_a_unit_has_no_number_of_its_own(unit: str) -> None:
    for frame in ("It is 18{}", "$18{}$", r"So \boxed{{18}}{}"):
        assert last_number(frame.format(unit)) == "18"


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("is **5**", "5"),
        ("is _5_", "5"),
        ("is __5__", "5"),
        ("in 2 days", "2"),
        ("min 2", "2"),
        ("x2", "2"),
        ("18 for 2", "2"),
    ],
)
def test_a_number_near_letters_is_not_taken_for_a_unit(completion: str, expected: str) -> None:
    assert last_number(completion) == expected


@pytest.mark.skipif(not CASES.exists(), reason=f"needs {CASES}")
def test_the_shared_cases_come_out_as_labelled() -> None:
    cases = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]
    names = ("correct", "strict", "flexible")
    assert cases
    for case in cases:
        score = score_numeric(case["completion"], case["gold"])
        assert {name: score[name] for name in names if name in case} == {
            name: case[name] for name in names if name in case
        }


@pytest.mark.skipif(not GSM8K.exists(), reason=f"needs {GSM8K}")
def test_every_gsm8k_reference_is_right_for_its_gold_and_wrong_for_the_next_number() -> None:
    files = (GSM8K / "train.jsonl", GSM8K / "test.jsonl")
    answers = [json.loads(line)["answer"] for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(answers) == 8792
    names = ("correct", "strict", "flexible")
    for answer in answers:
        completion, gold = re.sub(r"<<.*?>>", "", answer), answer.split("####")[1].strip()
        score = score_numeric(completion, gold)
        assert [score[name] for name in names] == [True] * 3, answer
        other = score_numeric(completion, str(int(gold.replace(",", "")) + 1))
        assert [other[name] for name in names] == [False] * 3, answer
