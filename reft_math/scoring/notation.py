r"""Normalises the spelling of numbers, so that scorers see them as a reader does.

A reader sees one number in ``1'234``, ``1 234``, ``１２３４`` and ``1\u200b234``; a pattern for digits reads the
first as 1 or 234, and finds no ASCII digit in the third.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction

# Control characters except white space, soft hyphen, zero-width characters, marks and overrides of direction. The
# invisible operators U+2061 to U+2064 stay: "2" times "3" is not 23.
_INVISIBLE = re.compile(
    "[\0-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060\u2066-\u206f\ufeff]"
)
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\uff0d", "-"),  # a minus sign, hyphens and short dashes
        **dict.fromkeys("\u2044\u2215\uff0f", "/"),
        **dict.fromkeys("\u066b\uff0e", "."),
        **dict.fromkeys("\u066c\uff0c", ","),
    }
)
_FOREIGN_DIGIT = re.compile(r"(?![0-9])\d")
_SUPERSCRIPTS = re.compile("[\u207a\u207b]?[\u00b2\u00b3\u00b9\u2070\u2074-\u2079]+")
_VULGAR_FRACTION = re.compile("([0-9]?)([\u00bc-\u00be\u2150-\u215e])")

# Groups of three, separated by a space of any width, also LaTeX's, or an apostrophe, or at least twice by points.
_GAP = r"(?:[ '\u2019\u00a0\u2000-\u200a\u202f\u205f\u3000]|\\[ ,:;!])"
_GROUPS = re.compile(
    rf"(?<![\w.,])(?:[1-9][0-9]{{0,2}}(?:{_GAP}[0-9]{{3}})+(?!{_GAP}?[0-9])"
    r"|[1-9][0-9]{0,2}(?:\.[0-9]{3}){2,}(?![0-9]|[.,][0-9]))"
)
_BETWEEN_GROUPS = re.compile(rf"{_GAP}|\.")

_REPEATING = re.compile(r"(?<![\w.,])([0-9]{1,9})\.([0-9]{0,9})\\overline\{([0-9]{1,9})\}")
_MIXED = re.compile(r"(?<![\w.,/^])([0-9]+) +([0-9]+/[0-9]+)(?![\w/])")

_SCIENTIFIC = re.compile(r"(?<![\w.,])[0-9]+(?:\.[0-9]+)?[eE][-+]?([0-9]+)(?!\w)")
_LARGEST_EXPONENT = 40  # larger numbers answer no problem, and would be written out with up to millions of digits


def plain_numbers(text: str) -> str:
    r"""Writes the text's numbers in ASCII: digits, a point, commas between thousands, ``^`` and ``/``.

    ==========================================================  =======================
    written                                                     becomes
    ==========================================================  =======================
    ``１８``, ``١٨``, ``1\u200b8`` (an invisible character)      ``18``
    ``1 234`` (a space of any width), ``1'234``, ``1\,234``     ``1,234``
    ``1.234.567``                                               ``1,234,567``
    ``0.1\overline{6}``                                         ``(1/6)``
    ``1.5e3``, ``1e999999``                                     ``1500``, ``\text{1e999999}``
    ``3½``, ``3 1/2``                                           ``(3+1/2)``
    ``5²``, ``−5`` (U+2212), ``–5`` (an en dash)                ``5^2``, ``-5``, ``-5``
    ==========================================================  =======================

    Args:
        text: A completion or a reference answer.
    """
    text = _INVISIBLE.sub("", text).translate(_SIGNS)
    text = _FOREIGN_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0])), text)
    text = _SUPERSCRIPTS.sub(_power, text)
    text = _VULGAR_FRACTION.sub(_fraction, text)
    text = _GROUPS.sub(lambda number: _BETWEEN_GROUPS.sub(",", number[0]), text)
    text = _REPEATING.sub(_repeating, text)
    text = _MIXED.sub(r"(\1+\2)", text)
    return _SCIENTIFIC.sub(_written_out, text)


def _power(found: re.Match[str]) -> str:
    exponent = unicodedata.normalize("NFKC", found[0]).replace("\u2212", "-")
    return f"^{exponent}" if len(exponent) == 1 else f"^{{{exponent}}}"


def _fraction(found: re.Match[str]) -> str:
    whole, fraction = found[1], unicodedata.normalize("NFKC", found[2]).replace("\u2044", "/")
    return f"{whole} {fraction}" if whole else fraction


def _repeating(found: re.Match[str]) -> str:
    """Returns ``(abc − ab) / (10^|b| (10^|c| − 1))`` for a.b and the period c, their digits read as whole numbers."""
    whole, fixed, period = found.groups()
    shifted = int(whole + fixed + period) - int(whole + fixed)
    return f"({Fraction(shifted, 10 ** len(fixed) * (10 ** len(period) - 1))})"


def _written_out(found: re.Match[str]) -> str:
    # Counted before it is read: int() of many digits is refused.
    is_small = len(found[1]) <= 2 and int(found[1]) <= _LARGEST_EXPONENT
    return format(Decimal(found[0]), "f") if is_small else rf"\text{{{found[0]}}}"
