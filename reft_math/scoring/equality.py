"""Compares two answers in normal form by math-verify."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from reft_math.scoring.answer_form import (
    choice,
    digits_and_base,
    last_sides,
    plain_words,
    with_imaginary_unit,
    without_percent,
)

_DECIMALS = re.compile(r"\.([0-9]+)")


def same_words(gold: str, answer: str) -> bool:
    """Returns whether the words agree except for case, articles and markup, or are the same choice's letter."""
    gold, answer = plain_words(gold), plain_words(answer)
    is_choice = re.fullmatch(r"\(?[a-z]\)?", gold) is not None
    return choice(gold) == choice(answer) if is_choice else gold == answer


def same_value(gold: str, answer: str) -> bool:
    r"""Returns ``verify(parse(gold), parse(answer))``, with cases that it misses.

    A gold with a base requires its digits, and its base if the answer has one. 10 % equals 10 and 1/10 if one of the
    two lacks the sign. ``i`` is the square root of -1 if gold holds it.
    """
    gold_digits, gold_base = digits_and_base(gold)
    digits, base = digits_and_base(answer)
    if gold_base is not None:
        return base in (gold_base, None) and digits.casefold() == gold_digits.casefold()
    (gold, gold_has_sign), (answer, has_sign) = without_percent(gold), without_percent(digits)
    if with_imaginary_unit(gold) != gold:
        gold, answer = with_imaginary_unit(gold), with_imaginary_unit(answer)
    sides = [answer] if "=" in gold else last_sides(answer)
    golds = [gold, rf"\frac{{{gold}}}{{100}}"] if gold_has_sign and not has_sign else [gold]
    answers = [*sides, *(rf"\frac{{{side}}}{{100}}" for side in sides if has_sign and not gold_has_sign)]
    return any(_verify(one, other) for one in golds for other in answers)


def _verify(gold: str, answer: str) -> bool:
    """Compares by as many decimals as the smallest number needs: math-verify's 6 and 15 equate 2^-99 and 2^-98."""
    from math_verify import verify

    expected, found = _parse(gold), [_as_set(each, answer) for each in _parse(answer)]
    exponent = min(map(_smallest_exponent, (*expected, *found)), default=0)
    written = max((len(digits) for digits in _DECIMALS.findall(gold)), default=0)
    is_equal: bool = verify(
        expected,
        found,
        float_rounding=max(6, 2 - exponent, min(written, 5 - exponent)),
        numeric_precision=15 - exponent,
        allow_set_relation_comp=True,
        timeout_seconds=0,
    )
    return is_equal


def _parse(answer: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    _mend()
    parsed: list[Any] = parse(f"${answer}$", [LatexExtractionConfig()], parsing_timeout=0)
    return parsed


def _as_set(parsed: Any, answer: str) -> Any:
    """Returns ``x < 2 \\text{ or } x > 3``, which math-verify reads as a list of two, as a union."""
    from sympy import FiniteSet, Intersection, Union
    from sympy.core.relational import Relational
    from sympy.logic.boolalg import And

    if not isinstance(parsed, FiniteSet) or not all(isinstance(each, Relational | And) for each in parsed.args):
        return parsed
    if len(parsed.free_symbols) != 1:
        return parsed
    join = Intersection if re.search(r"\band\b", answer) else Union
    return join(*(each.as_set() for each in parsed.args))


def _smallest_exponent(parsed: Any) -> int:
    """Returns ``min(0, floor(log10 |x|))`` over the numbers x in an expression."""
    from sympy import Basic, MatrixBase, floor, log, preorder_traversal

    if not isinstance(parsed, Basic | MatrixBase):
        return 0
    parts = (part for part in preorder_traversal(parsed) if isinstance(part, Basic) and part.is_number)
    sizes = [abs(part.evalf(2)) for part in parts if not part.is_Integer]
    return min((int(floor(log(size, 10))) for size in sizes if size.is_Float and size != 0), default=0)


@cache
def _mend() -> None:
    """Fixes two faults of latex2sympy2_extended 1.11.0 in this process.

    Its grammar for antlr 4.11 gives atoms no ``FUNC_GAMMA``, which the converter checks before percent signs, so every
    ``10\\%`` is an AttributeError. And it adds adjacent numbers, ``(2)(3)`` to 5, as if all were mixed numbers.
    """
    from latex2sympy2_extended.antlr_parser import PSParser
    from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy
    from sympy import Mul

    PSParser.AtomContext.FUNC_GAMMA = lambda self: None
    convert = _Latex2Sympy.convert_postfix_list

    def convert_postfix_list(self: Any, factors: Any, index: int = 0) -> Any:
        value = convert(self, factors, index)
        if index == 0 or not getattr(value, "is_Rational", False):
            return value
        is_mixed = (
            0 < value < 1
            and index == len(factors) - 1
            and factors[index].getText().startswith("\\frac")
            and factors[index - 1].getText().isdigit()
        )
        return value if is_mixed else Mul(1, value, evaluate=False)

    _Latex2Sympy.convert_postfix_list = convert_postfix_list
