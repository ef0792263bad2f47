r"""Reads arithmetic in running text: its tokens, and the exact value of calculations.

    5*3    5 x $3    (23+14)*2-18    1,250.50 - 3 1/2    20% of 50 eggs    \frac{10}{2} \times 3 \text{ miles/hour}

Units, currency, brackets of words and LaTeX's spacing are skipped. Only these operators are evaluated, on fractions;
numbers that are too long and brackets that are too deep are left unread.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Percents = Literal["hundredth", "unit", "share"]

OPERATORS = ("plus", "minus", "times", "over", "power", "fraction")

_SIGNS = str.maketrans("−–×·⋅∙÷⁄∕", "--****///")
_SCANNER = re.compile(
    r"""
      (?P<skip> [ \t]+ | (?>(?:\s|\\\\)+)(?=&?\s*(?:[=≈]|\\approx)) | \\?\$ | [€£¥₹"`_°~&'] | \\[(),;:!\[\]\ ]
        | \\(?:left|right|quad|qquad|displaystyle|boxed|big|Big)(?![a-zA-Z]) | \*\*(?!\d) )
    | (?P<stop> (?:and|or|so|then|thus|therefore|because|since|which|gives)\b | \\(?:begin|end)\{[^}]*\}
        | ^[ \t]*(?:[-*+•]|\d+[.)])[ \t]+ | [<>!]= | [-=]> | \.\.+ | \.(?!\d) | \\\\ | \n+ )
    | (?P<word> \\(?:text|mathrm|textbf|textit|mbox)\s*\{[^{}]*\} | \d+(?:st|nd|rd|th)\b )
    | (?P<opaque> \d+(?:\.\d+)?(?::\d+)+ | \d{25,}(?:\.\d+)? | \d*\.\d{25,} )
    | (?P<number> \d+[ ]\d+/\d+(?![\d.]) | \d{1,3}(?:(?:,|\{,\}|\\,|,\\!)\d{3}){1,7}(?!\d)(?:\.\d+)?
        | \d+(?:\.\d+)? | \.\d+ )
    | (?P<fraction> \\[dtc]?frac(?![a-zA-Z]) )
    | (?P<about> ≈ | \\approx(?![a-zA-Z]) )
    | (?P<equals> ==? | equals\b )
    | (?P<times> \*\*? | \\(?:times|cdot)(?![a-zA-Z]) | [xX](?=\s*\\?\$?[\d(]) | (?:times|multiplied[ ]by)\b )
    | (?P<over> / | \\div(?![a-zA-Z]) | divided[ ]by\b )
    | (?P<plus> \+ | plus\b )
    | (?P<minus> - | minus\b )
    | (?P<power> \^ )
    | (?P<percent> \\?% | percent\b | cents?\b | ¢ )
    | (?P<open> [({\[] )
    | (?P<close> [)}\]] )
    | (?P<name> [^\W\d_]\w*(?:[-'’][^\W\d_]\w*)* )
    | (?P<command> \\[a-zA-Z]+ )
    """,
    re.VERBOSE | re.MULTILINE,
)
_UNIT = re.compile(
    r"[kcm]?m|[km]?g|m?l|lbs?|oz|ft|in|yd|mi|hr?s?|mins?|s(?:ecs?)?|[mk]ph|gal|[st]t|nd|rd|th", re.IGNORECASE
)
_MOST_BITS = 4_000  # in a numerator or denominator
_DEEPEST = 30  # brackets
_LONGEST_UNIT = 6  # words between a number and its operator


@dataclass(frozen=True)
class Token:
    """A piece of a text.

    Attributes:
        kind: A group of the scanner: a ``word`` may follow a number, an ``opaque`` is part of no calculation, and a
            ``stop`` ends one.
        text: The text as written; signs with several spellings are unified.
        start, stop: Place in the text.
        is_glued: Whether it directly follows the token before, unless that is an equals sign or a ``stop``.
    """

    kind: str
    text: str
    start: int
    stop: int
    is_glued: bool

    @property
    def value(self) -> Fraction:
        """Value of a number."""
        if "/" in self.text:
            whole, fraction = self.text.split(" ")
            return int(whole) + Fraction(fraction)
        return Fraction(re.sub(r"[^\d.]", "", self.text))

    @property
    def decimals(self) -> int:
        """Number of digits after a number's point."""
        return len(self.text.partition(".")[2])


def scan(text: str) -> list[Token]:
    """Returns a text's tokens."""
    text = text.translate(_SIGNS)
    tokens: list[Token] = []
    place, is_glued = 0, False
    while place < len(text):
        match = _SCANNER.match(text, place)
        kind, stop = ("stop", place + 1) if match is None else (str(match.lastgroup), match.end())
        written = text[place:stop]
        if kind == "skip":
            is_glued = is_glued and not written.isspace()
        else:
            if kind in ("name", "command"):
                kind = _kind_of_name(written, tokens, is_glued)
            tokens.append(Token(kind, written, place, stop, is_glued))
            is_glued = kind not in ("stop", "equals", "about")
        place = stop
    return tokens


def _kind_of_name(name: str, before: Sequence[Token], is_glued: bool) -> str:
    """Classifies a name: ``of`` after a share multiplies; single letters are variables, except units as in ``2g``."""
    kinds = [token.kind for token in before[-3:]]
    if name == "of" and (kinds[-1:] == ["percent"] or kinds == ["number", "over", "number"]):
        return "times"
    if is_glued and kinds[-1:] in (["number"], ["close"]):
        return "word" if len(name) > 1 and _UNIT.fullmatch(name) else "opaque"
    is_word = len(name) > 1 and name[0] != "\\" and "_" not in name
    return "word" if is_word or name in "aAIgmhlLs" else "opaque"


class _Unread(Exception):
    """Raised where there is no calculation."""


def read(tokens: Sequence[Token], percents: Percents = "hundredth") -> tuple[Fraction, int] | None:
    """Returns the value of the longest beginning of the tokens that is a calculation, and its number of tokens.

    Args:
        tokens: Tokens without equals signs.
        percents: Meaning of percent signs and cents: hundredths, units, or shares of the number to which they are
            added (``100 - 20% = 80``).

    Returns:
        None if they do not begin with a calculation.
    """
    reader = _Reader(tokens, percents)
    try:
        return reader.sum(0), reader.place
    except _Unread:
        return None


class _Reader:
    """Parses by recursive descent; a calculation ends before an operator without a second operand."""

    def __init__(self, tokens: Sequence[Token], percents: Percents) -> None:
        self.tokens, self.percents, self.place = tokens, percents, 0

    def kind(self, ahead: int = 0) -> str:
        place = self.place + ahead
        return self.tokens[place].kind if place < len(self.tokens) else ""

    def sum(self, depth: int) -> Fraction:
        total = self.product(depth)
        while (sign := self.kind()) in ("plus", "minus"):
            place = self.place
            try:
                self.place += 1
                is_share = self.percents == "share" and self.kind() == "number" and self.kind(1) == "percent"
                term = self.product(depth)
            except _Unread:
                self.place = place
                break
            term = total * term if is_share else term
            total = _small(total + term if sign == "plus" else total - term)
        return total

    def product(self, depth: int) -> Fraction:
        product = self.power(depth)
        while (sign := self.kind()) in ("times", "over") or self._is_bracket_glued():
            place = self.place
            try:
                self.place += sign in ("times", "over")
                factor = self._tight_fraction() if sign == "over" else None
                factor = factor or self.power(depth)
                if sign == "over" and factor == 0:
                    raise _Unread
            except _Unread:
                self.place = place
                break
            product = _small(product / factor if sign == "over" else product * factor)
        return product

    def _tight_fraction(self) -> Fraction | None:
        """Returns the divisor in ``28 / 1/5``, recognised by its spaces."""
        found = self.tokens[self.place : self.place + 3]
        kinds = [(token.kind, token.is_glued) for token in found]
        if kinds != [("number", False), ("over", True), ("number", True)] or not found[2].value:
            return None
        self.place += 3
        return found[0].value / found[2].value

    def _is_bracket_glued(self) -> bool:
        """Whether a bracket multiplies, as in ``2(3+4)`` but not ``16 eggs (4 a day)``."""
        return self.kind() == "open" and self.tokens[self.place].is_glued

    def power(self, depth: int) -> Fraction:
        base = self.operand(depth)
        is_power = self.kind() == "power" or (self.kind() == "times" and self.tokens[self.place].text == "**")
        if not is_power:
            return base
        self.place += 1
        exponent = self.operand(depth)
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if exponent.denominator != 1 or not 0 <= exponent * bits <= _MOST_BITS:
            raise _Unread
        return base ** int(exponent)

    def operand(self, depth: int) -> Fraction:
        kind = self.kind()
        self.place += 1
        if kind == "minus" and depth < _DEEPEST:
            return -self.power(depth + 1)
        if kind == "number":
            value = self.tokens[self.place - 1].value
        elif kind == "open" and depth < _DEEPEST:
            self.place -= 1
            value = self._bracket(depth)
        elif kind == "fraction" and depth < _DEEPEST:
            above, below = self._bracket(depth), self._bracket(depth)
            if below == 0:
                raise _Unread
            value = above / below
        else:
            raise _Unread
        if self.kind() == "percent":
            self.place += 1
            value = value if self.percents == "unit" else value / 100
        self._units()
        return value

    def _bracket(self, depth: int) -> Fraction:
        if self.kind() != "open":
            raise _Unread
        self.place += 1
        value = self.sum(depth + 1)
        if self.kind() != "close":
            raise _Unread
        self.place += 1
        return value

    def _units(self) -> None:
        """Skips units: ``eggs``, ``cm^2``, ``miles/hour``, ``(apples)``."""
        for _ in range(_LONGEST_UNIT):
            if self.kind() == "word":
                self.place += 1
                if self.kind() == "power" and self.kind(1) == "number":
                    self.place += 2
            elif self.kind() == "over" and self.kind(1) == "word":
                self.place += 2
            elif self.kind() == "open" and self.kind(1) == "word" and not self.tokens[self.place].is_glued:
                length = 2
                while self.kind(length) == "word":
                    length += 1
                if self.kind(length) != "close":
                    return
                self.place += length + 1
            else:
                return


def _small(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MOST_BITS:
        raise _Unread
    return value
