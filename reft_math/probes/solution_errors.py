"""Finds where a solution first goes wrong: by a false equation, by a given copied wrongly, or by neither.

A number is copied wrongly if it is not in the question, not implied by the question's words (2 by "half") or
percentages, not the result of an equation, and differs from a given that the solution never uses by one digit, one
digit more or less, or two swapped neighbours. A given read as a quite different number, and a result carried over
wrongly, cannot be told from a wrong plan.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from reft_math.probes.equations import Equation, equations
from reft_math.probes.expressions import Token, scan
from reft_math.scoring.numeric import last_number, stated_answer

Kind = Literal["false equation", "miscopied given", "plan", "unreadable"]

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen twenty"
)
_WORDS = {word: (number,) for number, word in enumerate(_SMALL.split())}
_WORDS |= {"thirty": (30,), "forty": (40,), "fifty": (50,), "sixty": (60,), "seventy": (70,), "eighty": (80,)}
_WORDS |= {"ninety": (90,), "hundred": (100,), "thousand": (1000,), "million": (1_000_000,)}
# Numbers that words imply, by the words' beginnings.
_IMPLIED: dict[str, tuple[int, ...]] = {
    **{"hal": (2,), "twice": (2,), "doubl": (2,), "coupl": (2,), "pair": (2,), "both": (2,)},
    **{"third": (3,), "thrice": (3,), "tripl": (3,), "quarter": (4, 25), "fourth": (4,), "fifth": (5,), "tenth": (10,)},
    **{"second": (60,), "minute": (60,), "hour": (24, 60), "day": (7, 24, 30, 365), "dail": (7, 365)},
    **{"week": (4, 7, 52), "month": (4, 12, 30), "year": (12, 52, 365), "annual": (12,), "decade": (10,)},
    **{"dozen": (12,), "foot": (12,), "feet": (12,), "inch": (12,), "yard": (3,), "mile": (5280,), "kilo": (1000,)},
    **{"pound": (16,), "ounce": (16,), "gallon": (4, 8), "nickel": (5,), "dime": (10,)},
}
_ALWAYS = {Fraction(number) for number in (0, 1, 2, 100)}


@dataclass(frozen=True)
class SolutionError:
    """The first error of a wrong solution.

    Attributes:
        kind: Kind of error; ``plan`` if all equations are true and no given is copied wrongly, ``unreadable`` if there
            is no equation or no answer.
        start: Place in the text; None if it has no place.
        text: The equation or number.
    """

    kind: Kind
    start: int | None = None
    text: str = ""


def first_error(question: str, completion: str, has_answer: bool = True) -> SolutionError:
    """Returns the first error of a wrong solution.

    Args:
        question: The question.
        completion: The solution.
        has_answer: Whether it states an answer.
    """
    stated = equations(completion)
    false = next((equation for equation in stated if not equation.is_true), None)
    copied = miscopied_given(question, completion, stated)
    if false is not None and (copied is None or false.start <= copied.start):
        return SolutionError("false equation", false.start, completion[false.start : false.stop])
    if copied is not None:
        return SolutionError("miscopied given", copied.start, copied.text)
    return SolutionError("plan" if stated and has_answer else "unreadable")


def miscopied_given(question: str, completion: str, stated: Sequence[Equation]) -> Token | None:
    """Returns the first number that is a miscopied given of the question.

    Args:
        question: The question.
        completion: The solution.
        stated: The solution's equations.
    """
    givens = {token.value: token for token in _numbers(question)}
    used = {token.value for token in _numbers(completion)} | _worded(completion)
    unused = [token for value, token in givens.items() if value not in used]
    known = _ALWAYS | _worded(question) | {other for value in givens for other in _made_of(value)}
    known |= {equation.result.value for equation in stated if equation.result is not None}
    for token in _copies(completion, stated):
        if token.value not in known and any(_is_near(_plain(token), _plain(given)) for given in unused):
            return token
    return None


def _copies(completion: str, stated: Sequence[Equation]) -> Iterator[Token]:
    """Yields numbers that may be givens, by place: operands, and longer ones in prose but the answer."""
    operands = {token.start: token for equation in stated for token in equation.operands}
    answers = {stated_answer(completion), last_number(completion)}
    for token in _numbers(completion):
        is_prose = not any(equation.start <= token.start < equation.stop for equation in stated)
        if token.start in operands or (is_prose and len(_plain(token)) > 1 and _plain(token) not in answers):
            yield token


def _numbers(text: str) -> list[Token]:
    return [token for token in scan(text) if token.kind == "number"]


def _worded(text: str) -> set[Fraction]:
    """Returns the numbers that words state or imply, and their inverses: three, 7 in weeks, ¼ in quarters."""
    found: set[int] = set()
    for word in set(re.findall(r"[a-z]+", text.lower())):
        found.update(_WORDS.get(word, ()))
        found.update(number for stem, numbers in _IMPLIED.items() if word.startswith(stem) for number in numbers)
    return {Fraction(number) for number in found} | {Fraction(1, number) for number in found if number}


def _made_of(given: Fraction) -> set[Fraction]:
    """Returns a given, the given as a percentage, and a whole decreased or increased by it."""
    share = given / 100
    return {given, share, 1 - share, 1 + share, 100 - given, 100 + given}


def _plain(token: Token) -> str:
    return re.sub(r"[^\d./ ]", "", token.text)


def _is_near(number: str, given: str) -> bool:
    """Whether one digit is changed, added or left out, or two neighbours are swapped."""
    if len(number) < len(given):
        number, given = given, number
    if len(number) == len(given) + 1:
        return any(number[:place] + number[place + 1 :] == given for place in range(len(number)))
    differ = [place for place, (one, other) in enumerate(zip(number, given, strict=False)) if one != other]
    if len(number) != len(given) or not 1 <= len(differ) <= 2:
        return False
    first, last = differ[0], differ[-1]
    is_swap = last == first + 1 and number[first] == given[last] and number[last] == given[first]
    return len(differ) == 1 or is_swap
