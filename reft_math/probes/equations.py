r"""Finds the equations in a solution, ``a ∘ b = c``, and checks them in exact arithmetic.

    She sells 16 - 3 - 4 = <<16-3-4=9>>9 eggs at $2 each, or 9 x 2 = $18.      GSM8K
    \( \frac{10}{2} \times 3 = 15 \text{ eggs} \)                              chat models
    47+38=85                                                                    the embedded world

A chain ``A = B = C`` states ``A = B`` and ``B = C``; an equation has an operator on one of its sides. Prose before the
first side and after the last one is left out. Text that is not plain arithmetic (variables, ``10:30``, a word in
an operand's place, ``half of 16 + 4``) states nothing. An equation is true if its sides are equal, or if

- a number on the right is within a unit of its last decimal; within 1, if it is whole and the left side has a quotient;
  within a unit of its last nonzero digit, after ``≈``; or within one half, if it is whole and the left has decimals;
- a calculation on the right is within a hundredth of the left, if it has decimals or comes after ``≈``;
- any of this holds for the right side's first number alone, as when ``5*3 = 15+2 = 17`` joins two steps, or for the
  part before ``of``: ``1 - 2/3 = 1/3 of $150``;
- or for percent signs and cents read in any of the ways of `read`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import get_args

from reft_math.probes.expressions import OPERATORS, Percents, Token, read, scan

_ANNOTATION = re.compile(r"<<([^<>\n]*)>>")
# The calculation is longer than the text after these.
_SHARES = {"half", "third", "quarter", "twice", "double", "triple", "thrice"}
_FARTHEST = 200  # tokens that a first side reaches back


@dataclass(frozen=True)
class Equation:
    """``left = right``.

    Attributes:
        start, stop: Its place in the text, without the last unit.
        is_true: Whether it is true, see the module.
        decimal_slip: k if it is false and ``right = 10^k · left``: the decimal point is k places off; else 0.
        operands: The numbers of sides with operators.
        result: The right side if it is a single number.
    """

    start: int
    stop: int
    is_true: bool
    decimal_slip: int
    operands: tuple[Token, ...]
    result: Token | None


def equations(text: str) -> list[Equation]:
    """Returns all equations of a text, by place."""
    found: list[Equation] = []
    outside = text
    for annotation in _ANNOTATION.finditer(text):
        before, after = text[: annotation.start()], outside[annotation.end() :]
        outside = outside[: annotation.start()] + " " * len(annotation[0]) + after
        if not re.search(r"=[\s$]*\Z", before):  # otherwise it repeats the text before it
            found += _stated(" " * (annotation.start() + 2) + annotation[1])
    return sorted([*found, *_stated(outside)], key=lambda equation: equation.start)


def _stated(text: str) -> Iterator[Equation]:
    """Yields the equations of a text without annotations."""
    sides: list[list[Token]] = [[]]
    for token in scan(text):
        if token.kind == "stop":
            yield from _chain(sides)
            sides = [[]]
        elif token.kind in ("equals", "about"):
            sides.append([token])
        else:
            sides[-1].append(token)
    yield from _chain(sides)


def _chain(sides: Sequence[list[Token]]) -> Iterator[Equation]:
    """Yields the equations between neighbouring sides; each side but the first has its sign before it."""
    for number in range(1, len(sides)):
        sign, *right = sides[number]
        left = _last_calculation(sides[0]) if number == 1 else _last_calculation(sides[number - 1][1:], goes_on=True)
        right = _first_calculation(right)
        if not left or not right or not (_is_calculated(left) or _is_calculated(right)):
            continue
        calculated = [token for side in (left, right) if _is_calculated(side) for token in side]
        is_true = _is_true(left, right, sign.kind == "about")
        yield Equation(
            start=left[0].start,
            stop=next(token.stop for token in reversed(right) if token.kind != "word"),
            is_true=is_true,
            decimal_slip=0 if is_true else _decimal_slip(left, right),
            operands=tuple(token for token in calculated if token.kind == "number"),
            result=None if _is_calculated(right) else next(token for token in right if token.kind == "number"),
        )


def _last_calculation(side: Sequence[Token], goes_on: bool = False) -> list[Token]:
    """Returns the longest end of a side that is a calculation; a lone number if it is the side and a chain goes on."""
    for start in range(max(0, len(side) - _FARTHEST), len(side)):
        tokens = list(side[start:])
        if tokens[0].kind == "minus" and not (len(tokens) > 1 and tokens[1].is_glued and not tokens[0].is_glued):
            continue  # "revenue - 5"
        value = read(tokens)
        if value is None or value[1] < len(tokens):
            continue
        is_whole = goes_on and start == 0
        return tokens if (is_whole or _is_calculated(tokens)) and not _is_part(side, start) else []
    return []


def _first_calculation(side: list[Token]) -> list[Token]:
    """Returns the longest beginning of a side that is a calculation, unless an unreadable calculation continues it."""
    found = read(side)
    if found is None:
        return []
    beginning, rest = side[: found[1]], side[found[1] :]
    after, then = [*(token.kind for token in rest), "", ""][:2]
    goes_on = (
        after == "opaque"
        or (after == "open" and rest[0].is_glued)
        or (after == "number" and beginning[-1].kind == "number")
        or (after in OPERATORS and then == "opaque")
        or (after in ("plus", "times", "over") and then == "word")  # "= 8 eggs - so …"
    )
    return [] if goes_on else beginning


def _is_part(side: Sequence[Token], start: int) -> bool:
    """Whether a calculation that starts there is part of an unreadable one: ``x + 5*3``, ``5 + his 2``."""
    before = list(side[:start])
    if before and before[-1].kind in ("number", "percent", "close", "opaque"):
        return True
    while before and before[-1].kind in ("word", "open"):
        if before.pop().text.lower() in _SHARES:
            return True
    return bool(before) and before[-1].kind in OPERATORS


def _is_calculated(side: Sequence[Token]) -> bool:
    """Whether there is an operator, other than a number's sign or a unit's (``-5 miles/hour``, ``3 cm^2``)."""
    kinds = [token.kind for token in side]
    return "fraction" in kinds or any(
        kind in OPERATORS and after != "word" and (kind, before) != ("power", "word")
        for before, kind, after in zip(kinds, kinds[1:], kinds[2:], strict=False)
    )


def _is_true(left: list[Token], right: list[Token], is_about: bool) -> bool:
    """Whether the sides agree under some reading of percent signs, for the right side or its first number."""
    first = next((number for number, token in enumerate(right) if number and token.kind in OPERATORS), len(right))
    share = next((number for number, token in enumerate(right) if token.text == "of"), len(right))
    return any(
        _agree(ours[0], theirs[0], left, side, is_about, percents)
        for side in (right, right[:first], right[:share])
        for percents in get_args(Percents)
        if (ours := read(left, percents)) and (theirs := read(side, percents))
    )


def _decimal_slip(left: list[Token], right: list[Token]) -> int:
    """Returns k if ``right = 10^k · left``, else 0."""
    ours, theirs = read(left), read(right)
    if not ours or not theirs or ours[0] == 0:
        return 0
    ratio = theirs[0] / ours[0]
    small, large = sorted((ratio.numerator, ratio.denominator))
    digits = str(large)
    if small != 1 or digits.rstrip("0") != "1":
        return 0
    return len(digits) - 1 if ratio > 1 else 1 - len(digits)


def _agree(
    ours: Fraction, theirs: Fraction, left: list[Token], right: list[Token], is_about: bool, percents: Percents
) -> bool:
    off = abs(ours - theirs)
    if off == 0:
        return True
    decimals = max((token.decimals for token in right if token.kind == "number"), default=0)
    if _is_calculated(right):
        return (is_about or decimals > 0) and off <= abs(ours) / 100
    is_percent = percents != "unit" and any(token.kind == "percent" for token in right)
    unit = Fraction(1, 10 ** (decimals + 2 * is_percent))
    if is_about and decimals == 0:
        while theirs and theirs % (10 * unit) == 0:
            unit *= 10
    if is_about or decimals or any(token.kind in ("over", "fraction") for token in left):
        return off < unit
    return off <= unit / 2 and any(token.decimals for token in left)
