"""GSM8K-style answers: one number, read from the text of a solution and compared as a number."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import TypedDict

from reft_math.errors import UserError
from reft_math.scoring.notation import plain_numbers

_CURRENCY = "$£€¥₹"
# A minus is a sign unless it directly follows a digit, a letter or a closing bracket: "-3" and "= -3" against "5-3",
# "$5-$3", "(a)-3" and "step-2". The group is atomic, so that a look-ahead behind it refuses the whole number and never
# backs off to its first digits. Commas count only between groups of three, also in LaTeX's "1{,}234" and "1,\!234". The
# 2 of "m^2" and "x_2" is none.
_NUMBER = (
    rf"(?>(?<![0-9])(?<![A-Za-z][\^_])(?<![A-Za-z][\^_]\{{)(?:(?<![\w)\]}}%])-\\?[{_CURRENCY}]?)?"
    r"(?:[0-9]{1,3}(?:(?:,|\{,\}|,\\!)[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+))"
)
# What makes a number a part of another: "12,5", "1.2.3", "10:30", "0.(3)", "1{,}5", "1,234e5", "5_8", "5^n" (but not
# "18^\circ"), "5\sqrt{2}", "5π", the denominator of "5/8".
_GLUE = r"(?:[.,:'\u2019_~]|\{,\})"
_GOES_ON = re.compile(r"[ \t]*(?:\^(?!\{?\\circ)|\\(?:[dtc]?frac|sqrt|pi)|[√π])")
_WENT_BEFORE = re.compile(
    rf"(?:[0-9]\}}?{_GLUE}[{{(]?|[0-9)}}\]][ \t]*(?:/|\^|\*\*)[ \t]*[{{(]?\+?|[0-9][eE][-+]?"
    r"|(?:√|frac(?:[0-9]|\{[^{}]*\})?|sqrt(?:\[[^\[\]]*\])?)[{(]?)\Z"
)
_LOOK_BACK = 40

_LEAD = rf"[\s:=+*_`\"(\[\\{_CURRENCY}]*"  # "**18**", "\(18\)", "\[18\]", "\$18", ": 18", "= +18"
# "5/8" does not state 5, nor do "5 * 8", "5 - $8", "5(8)", "5 or 8", "5, 8" and "5 800".
_NOT_ALONE = (
    rf"(?!{_GOES_ON.pattern}|(?:{_GLUE}|[eE][-+]?)?[{{(]?[0-9]|[ \t]+[0-9]|(?:\\?%)?[ \t]*"
    rf"(?:[-+/=x,;\u00d7\u00f7\u00b1\u00b7\u22c5]|\*\*?|or|and|to|\\(?:times|cdot|div|pm))[ \t({{\\{_CURRENCY}]*[0-9])"
)
_STATED = f"{_LEAD}({_NUMBER}){_NOT_ALONE}"

_ANY_NUMBER = re.compile(_NUMBER)
_AFTER_HASHES = re.compile(f"####{_STATED}")
# "18\,\text{ dollars}", "18\text{ m}^2", "18^\circ"
_UNIT = rf"(?:[\s\\%°{_CURRENCY}A-Za-z.,*)]|\\!|\^(?=\{{?\\circ)|\{{[^{{}}0-9]*\}}(?:\^(?:[23]|\{{[23]\}}))?)*"
_BOXED = re.compile(rf"\\boxed\{{{_STATED}{_UNIT}\}}")
_ANSWER_IS = re.compile(rf"\banswer is\b{_STATED}", re.IGNORECASE)

_LONG_EXPANSION = 6
_RELATIVE_TOLERANCE = Decimal("1e-3")


class NumericScore(TypedDict):
    """How a completion fares against a numeric gold: by its stated answer, by its last number, and what these were."""

    strict: bool
    flexible: bool
    stated: str | None
    last_number: str | None


def stated_answer(completion: str) -> str | None:
    r"""The answer the solution states: ``#### N``, else the last ``\boxed{N}``, else the last "answer is N".

    The first ``####`` that a number follows counts, since a model that runs on writes further problems with further
    marks. A number that opens an expression or a list (``#### 5/8``, ``the answer is 5 or 6``) is not a stated answer.

    Args:
        completion: What the model wrote.

    Returns:
        The number without currency, percent sign and thousands commas, or ``None`` where nothing is stated.
    """
    completion = plain_numbers(completion)
    if hashes := _AFTER_HASHES.search(completion):
        return _plain(hashes[1])
    for pattern in (_BOXED, _ANSWER_IS):
        if numbers := pattern.findall(completion):
            return _plain(numbers[-1])
    return None


def last_number(completion: str) -> str | None:
    """The last number in the text, in the form of `stated_answer`: ``"cost $1,234.50."`` gives ``"1234.50"``.

    Where it is but a part of a number (``5/8``, ``2^{10}``, ``12,5``), there is none: 8 is not what was answered.

    Args:
        completion: What the model wrote.

    Returns:
        The number, or ``None`` where the text holds none.
    """
    completion = plain_numbers(completion)
    numbers = list(_ANY_NUMBER.finditer(completion))
    if not numbers:
        return None
    number = numbers[-1]
    before = completion[max(0, number.start() - _LOOK_BACK) : number.start()]
    is_part = _WENT_BEFORE.search(before) or _GOES_ON.match(completion, number.end())
    return None if is_part else _plain(number[0])


def numbers_equal(answer: str, gold: str) -> bool:
    """``answer == gold`` as decimals, or ``|answer - gold| <= 1e-3 |gold|`` where gold has more than six decimals.

    So 18, 18.0 and 18.00 are equal, and 5 is not in 15. More than six decimals are a float's expansion of a fraction
    (MAWPS: ``1.8333333333333335``), which no solution writes out; there three right significant digits are asked for.

    Args:
        answer: The number to judge.
        gold: The reference.

    Raises:
        UserError: If one of them is not a number.
    """
    answer_value, gold_value = _decimal(answer), _decimal(gold)
    if _decimals(gold_value) <= _LONG_EXPANSION:
        return answer_value == gold_value
    margin = _RELATIVE_TOLERANCE * abs(gold_value)
    # Not their difference, which overflows where the answer has a million digits.
    return gold_value - margin <= answer_value <= gold_value + margin


def score_numeric(completion: str, gold: str) -> NumericScore:
    """Strict: the stated answer equals gold. Flexible: the last number does.

    Args:
        completion: What the model wrote.
        gold: The reference answer, a number alone.

    Raises:
        UserError: If gold is not a number.
    """
    _decimal(gold)
    stated, last = stated_answer(completion), last_number(completion)
    return NumericScore(
        strict=stated is not None and numbers_equal(stated, gold),
        flexible=last is not None and numbers_equal(last, gold),
        stated=stated,
        last_number=last,
    )


def _plain(number: str) -> str:
    """The matched text as `Decimal` reads it."""
    return re.sub(r"[^0-9.-]", "", number)


def _decimal(text: str) -> Decimal:
    try:
        value = Decimal(re.sub(r"[,$%]", "", text.strip()))
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite():
        raise UserError(
            f"numeric scoring compares numbers: expected one such as '18' or '1,234.5', got {text!r}; "
            "score other answers with math-verify"
        )
    return value


def _decimals(value: Decimal) -> int:
    exponent = value.normalize().as_tuple().exponent
    return -exponent if isinstance(exponent, int) else 0
