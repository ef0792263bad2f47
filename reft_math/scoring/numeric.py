"""Scores GSM8K-style answers: one number, read from the text of a solution and compared as a number."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TypedDict

from reft_math.errors import UserError
from reft_math.scoring.notation import plain_numbers

# --- formatting: spaces, fonts and colours, powers of units ------------------------------------------------------

_SPACES = re.compile(
    r"\\[,:; ]|\\(?:q?quad|(?:thin|med|thick|en)space|bf|rm|displaystyle)(?![A-Za-z])|\\hspace\*?\{[^{}]*\}|~|&nbsp;"
    "|[\u00a0\u2000-\u200a\u202f\u205f\u3000]"
)
_TEXT = r"\\(?:text(?:rm|bf|it|sf|tt|normal)?|math(?:rm|bf|it|sf|tt)|[hm]box|operatorname|boldsymbol|bm|underline)"
_DRESSED = re.compile(rf"(?:{_TEXT}|\\(?:text)?color\s*\{{[^{{}}]*\}})\s*\{{([^{{}}]*)\}}")
_UNIT_FRACTION = re.compile(rf"\\[dt]?frac\s*\{{\s*{_TEXT}\{{([^{{}}]*)\}}\s*\}}\s*\{{\s*{_TEXT}\{{([^{{}}]*)\}}\s*\}}")
_NESTED = 3
_TWICE = re.compile(r"\{\s*(\{[^{}]*\})\s*\}")
# The 2 of "m^2", "cm$^{-2}$", "x_2" and "m<sup>2</sup>", and that of "ft2", where the letters measure a length.
_RAISED = re.compile(
    r"(?<=[A-Za-z])(?:\.?\$? ?\^ ?(?:\{[^{}]*\}|[-+]?[0-9]+)|_(?:\{[^{}]*\}|[0-9]+)|<sup>[-+]?[0-9]+</sup>)+"
    r"|(?<![A-Za-z\\])(?P<unit>[cdkm]?m|in|ft|yd|mi|inch(?:es)?|feet|foot|yards?|miles?|units?|(?:centi|kilo)?met(?:er|re)s?|CO)"
    r"[23](?![0-9A-Za-z]|[.,][0-9])"
)

# --- numbers ------------------------------------------------------------------------------------------------------

_CURRENCY = "$£€¥₹"
# A minus is a sign unless it directly follows a digit, a letter or a closing bracket: "-3" and "= -3" against "5-3",
# "$5-$3", "(a)-3" and "step-2". The group is atomic, so that a look-ahead behind it refuses the whole number and never
# backs off to its first digits. Commas count only between groups of three; behind a lone 0 a comma is a decimal point.
_NUMBER = (
    rf"(?>(?<![0-9])(?:(?<![\w)\]}}%])-\\?[{_CURRENCY}]?)?(?:0,[0-9]+(?!,?[0-9])"
    r"|[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+))"
)
_ANY_NUMBER = re.compile(_NUMBER)
_ALONE = re.compile(rf"[\s+\\{_CURRENCY}]*({_NUMBER})[\s\\%.{_CURRENCY}]*")
# What makes a number a part of another: "12,5", "1.2.3", "10:30", "0.(3)", "1,234e5", "5_8", "5^n" (but not
# "18^\circ"), "5\sqrt{2}", "5π", the denominator of "5/8".
_GLUE = r"[.,:'\u2019_]"
_GOES_ON = re.compile(r"[ \t]*(?:\^(?!\{?\\circ)|\\(?:[dtc]?frac|sqrt|pi)|[√π])")
_WENT_BEFORE = re.compile(
    rf"(?:[0-9]\}}?{_GLUE}[{{(]?|[0-9)}}\]][ \t]*(?:/|\^|\*\*)[ \t]*[{{(]?\+?|[0-9][eE][-+]?"
    r"|(?:√|frac(?:[0-9]|\{[^{}]*\})?|sqrt(?:\[[^\[\]]*\])?)[{(]?)\Z"
)
_LOOK_BACK = 40

# --- how an answer is stated: repetitions are possessive or bounded, since a completion may be long -----------------

# "**18**", "\(18\)", "\[18\]", "\$18", ": 18", "= +18", "<18>", "x = 18", "US$18"
_FRAME = rf"[\s:=+*_`\"(\[<\\{_CURRENCY}]*+"
_LEAD = rf"{_FRAME}(?:(?:[A-Za-z][ \t]*=|USD?|EUR|GBP){_FRAME})?"
# "5/8" does not state 5, nor do "5 * 8", "5 - $8", "5(8)", "5 or 8", "5, 8", "5 800", "5 m + 8 m" and "5 m or 8 m".
_OPERATOR = r"(?:[-+/=,;\u00d7\u00f7\u00b1\u00b7\u22c5]|\*\*?|or|and|\\(?:times|cdot|div|pm))"
_NEXT = rf"[ \t({{\\{_CURRENCY}]*+[0-9]"
_NOT_ALONE = (
    rf"(?!{_GOES_ON.pattern}|(?:{_GLUE}|[eE][-+]?)?[{{(]?[0-9]|[ \t]+[0-9]"
    rf"|(?:\\?%)?[ \t]*(?:{_OPERATOR}|x|to){_NEXT}"
    rf"|[ \t]*+[A-Za-z]++(?:[ \t]++[A-Za-z]++){{0,2}}[ \t]*(?:{_OPERATOR}|x|plus|minus|times){_NEXT})"
)
_STATED = f"({_NUMBER}){_NOT_ALONE}"

_LABEL = r"(?:(?<![A-Za-z])(?i:answer|ans)(?![A-Za-z])[*_\"'`)\]\t ]*[:\uff1a]|<answer>)"
# "1. Add", "1) **Add**", "(2) Halve", "3 - Add", "1st step", "2. 20 + 5 = 25": a heading's number is no answer.
_HEADING = (
    r"[0-9]{1,2}(?:\.[0-9]{1,2})?(?:(?:st|nd|rd|th)\b|[ \t]+[-\u2014][ \t]+[*_]*[A-Z][a-z]"
    r"|[.):][*_]*(?:[ \t]*[*_\"($\\]*[A-Za-z]|[ \t]+[^\n]{0,200}=))"
)
_AFTER_HASHES = re.compile(rf"####(?:[ \t*_]*(?i:final[ \t]+)?{_LABEL})?{_LEAD}(?!{_HEADING}){_STATED}")

# "18\,\text{ dollars}", "18^\circ", "18 km/h", but not "5x"
_UNIT = (
    r"(?!\s*[a-fi-kn-ru-z]\s*\})"
    rf"(?:[\s\\%°{_CURRENCY}A-Za-z.,*()/'-]|\^(?=\{{?\\circ)|\{{[^{{}}0-9]*\}})*"
)
_BOXED = re.compile(rf"\\f?box(?:ed)?\s*\{{\s*(?:[A-Za-z][A-Za-z' ]{{0,40}}(?:[:=]|\bis\b))?{_LEAD}{_STATED}{_UNIT}\}}")

# A label precedes the answer or the whole solution. The text after it is the answer if it is its line's only sentence,
# or a short one, and without a calculation; "1." opens a list.
_ALL_OF_IT = (
    r"(?![^\n.(]{0,200}=)(?:(?=(?:[ \t]+[^\s.]+){0,3}[*_\"]*\.(?![0-9]))|(?=[^\n.]{0,200}+\.?+[*_\"')\]}$ \t]*+$))"
)
_LABELLED = (
    rf"(?:{_LABEL}|^[#*_ \t]*(?i:final[ \t]+)?(?i:answer)[*_ \t]*$){_LEAD}(?!1[.)][*_]*[ \t]+\S){_STATED}{_ALL_OF_IT}"
)
_ANSWER_IS = (
    r"(?i:\banswer(?:[ \t]+to[ \t][A-Za-z' \t]{1,40})?[ \t]+(?:is|was|(?:would|should|will|must)[ \t]+be)\b"
    rf"(?:[ \t]+(?:therefore|thus|then|simply|exactly|approximately|about))*){_LEAD}{_STATED}"
)
_IN_WORDS = re.compile(f"{_ANSWER_IS}|{_LABELLED}", re.MULTILINE)

_LONG_EXPANSION = 6
_RELATIVE_TOLERANCE = Decimal("1e-3")


class NumericScore(TypedDict):
    """The scores of a completion against a numeric gold.

    ``strict`` judges its ``stated`` answer, ``flexible`` its ``last_number``, and ``correct`` is the former if an
    answer is stated, else the latter.
    """

    correct: bool
    strict: bool
    flexible: bool
    stated: str | None
    last_number: str | None


def unwrapped(text: str) -> str:
    r"""Removes LaTeX's formatting: ``\text{18~m}`` and ``\mathbf{18}`` become ``18 m`` and ``18``.

    Args:
        text: A completion or an answer.
    """
    text = _SPACES.sub(" ", text.replace(r"\!", "").replace("{,}", ","))
    text = _UNIT_FRACTION.sub(r" \1/\2", text)
    for _ in range(_NESTED):
        text = _DRESSED.sub(r" \1", text)
    return _TWICE.sub(r"\1", text)


def stated_answer(completion: str) -> str | None:
    r"""Returns the answer that a solution states: ``#### N``, else the last ``\boxed{N}``, "answer is N", "Answer: N".

    The first ``####`` before a number counts, since a model that runs on writes further problems with further marks;
    the number of a heading (``#### 1. Add the coins``) does not. A number that opens an expression or a list
    (``#### 5/8``, ``the answer is 5 or 6``) is not a stated answer, nor is one that opens a solution (``Answer: 5 eggs
    are eaten. 3 are sold.``).

    Args:
        completion: The model's completion.

    Returns:
        The number without currency, percent sign and thousands commas, or ``None`` if nothing is stated.
    """
    return _stated(_readable(completion))


def last_number(completion: str) -> str | None:
    """Returns the last number in the text, in the form of `stated_answer`: ``"cost $1,234.50."`` gives ``"1234.50"``.

    If it is only a part of a number (``5/8``, ``2^{10}``, ``12,5``), the result is None: 8 is not the answer.

    Args:
        completion: The model's completion.

    Returns:
        The number, or ``None`` if the text holds no number.
    """
    return _last(_readable(completion))


def number_alone(text: str) -> str | None:
    """Returns a text that is only a number in the form of `stated_answer`: ``"$1,234.50"`` gives ``"1234.50"``.

    Args:
        text: An answer.

    Returns:
        The number, or ``None`` if the text is not a number alone.
    """
    found = _ALONE.fullmatch(_readable(text))
    return None if found is None else _plain(found[1])


def _readable(text: str) -> str:
    r"""Applies `plain_numbers` and removes powers of units: ``18\,\mathrm{cm}^2`` becomes ``18  cm``."""
    return _RAISED.sub(r"\g<unit>", plain_numbers(unwrapped(text)))


def _stated(text: str) -> str | None:
    if hashes := _AFTER_HASHES.search(text):
        return _plain(hashes[1])
    for pattern in (_BOXED, _IN_WORDS):
        if found := [match[match.lastindex or 0] for match in pattern.finditer(text)]:
            return _plain(found[-1])
    return None


def _last(text: str) -> str | None:
    numbers = list(_ANY_NUMBER.finditer(text))
    if not numbers:
        return None
    number = numbers[-1]
    before = text[max(0, number.start() - _LOOK_BACK) : number.start()]
    is_part = _WENT_BEFORE.search(before) or _GOES_ON.match(text, number.end())
    return None if is_part else _plain(number[0])


def numbers_equal(answer: str, gold: str) -> bool:
    """Returns ``answer == gold`` as decimals, or ``|answer - gold| <= 1e-3 |gold|`` if gold has more than six decimals.

    So 18, 18.0 and 18.00 are equal, and 5 is not in 15. More than six decimals are a float's expansion of a fraction
    (MAWPS: ``1.8333333333333335``), which no solution writes out; then three right significant digits are enough.

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
    # Not their difference, which overflows if the answer has a million digits.
    return gold_value - margin <= answer_value <= gold_value + margin


def score_numeric(completion: str, gold: str) -> NumericScore:
    """Scores a completion: correct if the stated answer, or without one the last number, equals gold.

    Args:
        completion: The model's completion.
        gold: The reference answer, a number alone.

    Raises:
        UserError: If gold is not a number.
    """
    _decimal(gold)
    text = _readable(completion)
    stated, last = _stated(text), _last(text)
    strict = stated is not None and numbers_equal(stated, gold)
    flexible = last is not None and numbers_equal(last, gold)
    return NumericScore(
        correct=strict if stated is not None else flexible,
        strict=strict,
        flexible=flexible,
        stated=stated,
        last_number=last,
    )


def _plain(number: str) -> str:
    """Returns the matched text in a form that `Decimal` reads."""
    return re.sub(r"[^0-9.-]", "", re.sub(r"(?<![0-9])0,", "0.", number))


def _decimal(text: str) -> Decimal:
    number = number_alone(text)
    if number is None:
        raise UserError(
            f"numeric scoring compares numbers: expected one such as '18' or '1,234.5', got {text!r}; "
            "score other answers with math-verify"
        )
    return Decimal(number)


def _decimals(value: Decimal) -> int:
    exponent = value.normalize().as_tuple().exponent
    return -exponent if isinstance(exponent, int) else 0
