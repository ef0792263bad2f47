r"""What counts as the same answer, kind by kind; each was read wrongly by math-verify alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reft_math.scoring.answer_text import stated_answers
from reft_math.scoring.math_equivalence import compare

CASES = sorted((Path(__file__).resolve().parents[4] / "shared" / "cases").glob("math*.jsonl"))


def box(*contents: str) -> list[str]:
    return [rf"\boxed{{{content}}}" for content in contents]


MATRIX = r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"

# (gold, right completions, wrong ones)
ANSWERS: dict[str, list[tuple[str, list[str], list[str]]]] = {
    "per cent": [
        ("25", [*box(r"25\%", "25 %", r"25\text{ percent}", r"25\text{\%}"), r"It is $25\%.$", "It is $25$%."], []),
        ("25", ["The answer is 25 percent.", r"\boxed{25}\%"], box(r"2.5\%", r"26\%", r"0.25\%")),
        (r"25\%", box("25", "0.25", r"\frac14", r"25\%"), box("2.5", r"0.25\%", r"2500\%")),
        ("12.5", box(r"12.5\%", r"12\frac12\%"), box(r"1.25\%")),
        ("0.25", box(r"25\%"), box(r"2.5\%")),
        ("10, 20", box(r"10\%, 20\%"), box(r"10\%")),
    ],
    "inequality for an interval": [
        ("[0,1]", box(r"0\le x\leqslant 1", "0 ≤ y ≤ 1", r"1\ge x\ge0", r"x\ge0 \text{ and } x\le1"), []),
        ("[0,1]", box(r"\{x \in \mathbb{R} \mid 0 \le x \le 1\}"), box("0<x<1", r"0\le x\le2", r"x\ge0", "(0,1)")),
        (r"x \in [0,1]", box(r"[0,1]", r"0 \leq x \leq 1"), box(r"0 \leq x < 1")),
        (r"(2,\infty)", [*box("x>2", "2<x", r"x\in(2,\infty)"), "The answer is $x > 2.$"], box(r"x\ge2", "x<2", "2")),
        (r"(-\infty,0]", box(r"x\leq0"), box("x<0", r"x\ge0")),
        (r"(-\infty,2)\cup(3,\infty)", [*box(r"x>3 \text{ or } x<2"), "so $x<2$ or $x>3$."], []),
        (r"(-\infty,2)\cup(3,\infty)", box(r"(3,\infty)\cup(-\infty,2)"), box("x<2", "2<x<3", r"x\le2\text{ or }x>3")),
        ("x > 3", box(r"(3,\infty)"), box(r"[3,\infty)", "x<3")),
    ],
    "bases": [
        ("52_8", [*box("52_{8}", r"52_{\text{eight}}", "52", "(52)_8", "52₈", r"42_{10} = 52_8"), "52 (base 8)"], []),
        ("52_8", [r"It is $52$ in base 8."], box("52_9", "52_{10}", "42_{10}", "42", "53_8", r"52_{\text{nine}}")),
        ("4210_{5}", box(r"4210_{\text{five}}", r"4210_\text{five}", r"4210_{\text{base }5}"), box("4210_6")),
        ("2A_{12}", box("2A_{12}"), box("2A_{13}", "2B_{12}")),
    ],
    "small decimals and tiny numbers": [
        (".0000672", box(r"6.72\times10^{-5}", "0.00006720", "6.72e-5"), box(".0000673", "0.000067", "6.73e-5")),
        ("0.0001234", box("0.0001234"), box("0.0001231")),
        (r"\frac13", box("0.333333"), box("0.3334")),
        ("0", box("0.0"), box("0.0000001", r"2^{-80}")),
        (r"\frac{1}{2^{99}}", box("2^{-99}", r"\left(\frac12\right)^{99}"), box(r"\frac{1}{2^{98}}", "0", "-2^{-99}")),
        (r"1-\frac{1}{2^{99}}", box(r"\frac{2^{99}-1}{2^{99}}"), box(r"1-\frac{1}{2^{98}}", "1")),
        ("1", [], box(r"1-\frac{1}{2^{99}}")),
        ("2^{2000}", box("4^{1000}"), box("2^{2001}", "2^{2000}+1")),
        (r"(2^{-99},1)", box(r"(\frac{1}{2^{99}},1)"), box(r"(2^{-98},1)")),
    ],
    "an open box": [
        ("7", [r"\boxed 7", r"\boxed{} so \boxed{7}", r"\boxed{8} is wrong, so \boxed{7}"], [r"\boxed{7} and \boxed{"]),
        ("7", [r"\boxed{7}. Indeed $7 = "], [r"\boxed{7}. Then $\boxed{7", r"\boxed{\frac{7}{1}", r"\fbox{7} \fbox{"]),
    ],
    "a full stop in dollars": [
        (r"\frac12", [r"It is $x = \frac{1}{2}.$", r"\[\frac12.\]", r"\(\frac12,\)", "$.5.$"], []),
        ("3", ["$3.$", r"It is $\frac{6}{2}.$"], [r"$3\sqrt{2}.$", r"$3\pi.$", "$3^2.$", "$3:4.$", "$3!.$", r"\(3n\)"]),
        ("2", [], ["$2^3.$", r"$2\cdot 3.$", r"$\frac{2}{3}.$"]),
        ("(1,2)", ["The point is $(1,2).$", "$(x,y) = (1,2).$"], ["$(2,1).$"]),
    ],
    "juxtaposed factors": [
        ("6", [*box("(2)(3)", "2(3)", "(2)3", r"\left(2\right)\left(3\right)", r"2\frac{6}{2}"), "It is (2)(3)."], []),
        ("5", [], [*box("(2)(3)", "2(3)", r"\binom{3}{1}\binom{2}{1}"), "$(2)(3).$"]),
        ("-6", box("(-2)(3)"), []),
        ("24", box("2(3)(4)", "3!(4)"), box("9")),
        (r"\frac52", box(r"2\frac12", "2 1/2", "2½", r"2\tfrac12"), box(r"2\left(\frac12\right)", r"(2)\frac12")),
    ],
    "signs and units": [
        (r"106^\circ", box("106°", "106", r"106\text{ degrees}", r"106\degree", r"\angle A = 106°"), box("107°")),
        (r"3\sqrt{13}", [*box("3√13", "3√(13)", "3sqrt(13)"), "It is 3√13."], box("3√3")),
        ("3", [], ["It is 3√13.", r"It is 3\sqrt{13}."]),
        (r"\$18.90", [*box(r"\$18.90", "18.9"), r"It is \$18.90.", "He gets $1.10 of $20 back: $18.90."], box("1890")),
        (r"\$36", [*box(r"\text{36 dollars}", "36 dollars", "€36", r"\text{\$36}"), "In total $36."], box("35")),
        (r"15\mbox{ cm}^2", box("15", r"15\,\mathrm{cm}^2", r"15\text{ cm}^{2}", "15 cm²"), box("2")),
        (r"12\pi", [*box("12π", r"12\pi\text{ square units}"), "12π"], [*box("12", "2π"), "12"]),
    ],
    "spaces and punctuation": [
        ("1+2i", box("1 + 2 i", r"1+2\,i", r"1+2\mathrm{i}", "2i+1", r"\frac{2+4i}{2}"), box("1-2i", "2+i", "1 + 2 j")),
        ("-i", box("i^3"), box("i", "i^2")),
        (r"\frac12", box(r"\dfrac{1}{2}.", r"\;\frac12\;", r"$\frac12$", r"\(\frac12\)", r" \frac {1} {2} "), []),
        (r"10,\!080", box("10080", r"10\,080", "10{,}080", "10 080"), box("10", "80")),
        ("5", box(" 5 ", "5;", r"5\quad", r"5~", r"\hspace{1cm}5", r"5\\"), box("5x", "55")),
        ("-5", box("- 5", r"-\,5", "−5"), box("5")),
    ],
    "styles": [
        ("42", box(r"\boldsymbol{42}", r"\mathbf{42}", r"\textbf{42}", r"\color{red}{42}", r"{\color{red}42}"), []),
        ("42", box(r"\textcolor{red}{42}", r"\text{42}", r"\bm{\color{red}{42}}", r"\large 42", r"{\bf 42}"), []),
        ("42", ["**42**", r"\mathbf{\boxed{42}}", r"$\mathbf{42}.$"], box(r"\color{42}{43}", r"\mathbf{43}")),
        (MATRIX, box(r"\begin{pmatrix}1&2\\[4pt]3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\[1ex]3&4\end{bmatrix}"), []),
        (MATRIX, box(r"\left(\begin{smallmatrix}1&2\\3&4\end{smallmatrix}\right)"), box(MATRIX.replace("4", "5"))),
        (MATRIX, [rf"\[A = {MATRIX}.\]".replace(r"\\ 3", r"\\[4pt] 3")], box(MATRIX.replace("1", "2"))),
    ],
    "words and choices": [
        (r"\text{(C)}", ["The answer is (C).", "The answer is C.", "**C**", "The correct choice is (C).", "(C)"], []),
        (r"\text{(C)}", [*box("C", r"\text{(C)}", r"\textbf{(C) }12"), "Answer: C) 12"], ["The answer is not (C)."]),
        (r"\text{(C)}", ["The answer is (C), since 3 < 4."], ["(C) is wrong; the answer is (D).", *box("CD", "3")]),
        (r"\text{(A)}", [], ["The answer is A circle.", "The answer is neither (A) nor (C)."]),
        (r"\text{Evelyn}", ["The final answer is Evelyn.", "**Evelyn**", "The answer is **Evelyn**.", "Evelyn"], []),
        (r"\text{Evelyn}", [*box("Evelyn", r"\textbf{Evelyn}"), "Answer: Evelyn, by far"], box("Angela")),
        (r"\text{Evelyn}", [], ["The answer is Evelyn or Angela.", "The answer is not Evelyn.", "We know Evelyn."]),
        (r"\text{ellipse}", ["The answer is an ellipse."], ["The answer is a circle."]),
    ],
    "dollars that are money": [
        ("694", ["$204 + $160 + $330 = $694", "He pays $160 + $534 = $694 in all.", "So it is $694 a week."], []),
        ("5", ["$75/$15=5 hours.", "She works $75 / $15 = 5 hours."], ["It is $75/$15 = 6 hours.", "so $5+3^{2"]),
    ],
    "several formulas": [
        ("6", ["so $5x=30$ and $x=6$.", r"$5x=30$, $x=6$.", r"$5x=30 \implies x=6.$", "$a=5$, and $b = 2+4 = 6.$"], []),
        ("6", [r"\begin{align*}5x&=30\\x&=6.\end{align*}", "There are $6$ values of $x$."], ["$x=6$ or $x=7$"]),
        ("30", [], ["so $5x=30$ and $x=6$."]),
        ("2,3", ["$x=2$ or $x=3$", "$2$ and $3$", r"$\boxed{2}$ and $\boxed{3}$", "2, 3"], box("2", "2,4")),
        ("3", [r"$x \equiv 3 \pmod 7$"], ["$x=2$ or $x=3$", "2 or 3", r"\boxed{2} or \boxed{3}"]),
        (r"\frac54", ["It is $1.25$, or $\\frac{5}{4}$."], ["It is $1.25$, or $4$."]),
        (r"\frac17", [r"$\frac17 \approx 0.14$", r"[asy] draw((0,1)); [/asy]$\frac17$[asy] draw((2,3)); [/asy]"], []),
        ("x^2+1", ["The answer is x^2+1.", "x^2 + 1", "$f(x)=x^2+1.$"], []),
        ("1", [], ["The answer is x^2+1.", "x^2 + 1"]),
        ("58,500", [r"$26\times25\times10\times9=58,500$."], []),
    ],
    "broken off": [
        ("5", [], [r"We have $5^2\cdot5^1=5^2\cdot5^3-5^", r"Then $x = 5 \cdot", r"\[ 5 + 3", r"so \( 5", "= 5^"]),
        ("5", [], [r"\begin{align*} x &= 5 \\ &= 3 +", r"We know that $a=5$ and $b = 3 \cdot", r"x = \frac{5"]),
        ("6", [r"The answer is $6$. To check, $5 \cdot", "it costs $6"], []),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("gold", "right", "wrong"), [pytest.param(*row, id=kind) for kind, rows in ANSWERS.items() for row in rows]
)
def test_answers_are_read_as_a_reader_does(gold: str, right: list[str], wrong: list[str]) -> None:
    assert [each for each in right if not compare(gold, each).is_correct] == []
    assert [each for each in wrong if compare(gold, each).is_correct] == []


@pytest.mark.skipif(not CASES, reason="needs shared/cases")
def test_cases_that_others_labelled() -> None:
    rows = [json.loads(line) for path in CASES for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row for row in rows if compare(row["gold"], row["completion"]).is_correct != row["right"]] == []


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        (r"\boxed{1}, \boxed{\frac{2}{3}} and $\boxed{4}$", ["1", r"\frac{2}{3}", "4"]),
        (r"\boxed{1} is wrong, it is \boxed{2}", ["2"]),
        (r"\boxed{1", []),
        ("He pays $20 and gets $16 back.", ["16"]),
        ("so $x = 2$ or\n$x = 3$, I think", ["x = 2", "x = 3"]),
        (r"The answer is $4$, then $5$. The rest is \(6", ["4"]),
        ("The answer: 3√2", ["3√2"]),
        ("Thus 3 of 4 are 5 kg", ["5"]),
        ("nothing", []),
    ],
)
def test_what_is_stated(text: str, stated: list[str]) -> None:
    assert stated_answers(text) == stated
