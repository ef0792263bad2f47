r"""Finds the stated answer of a MATH solution.

math-verify searches a whole solution, and instead of an answer that it cannot read it takes a number nearby: 3 in
``$3\sqrt{2}.$``, 5 in a formula that breaks off. Here the answer is found first, readable by math-verify or not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBER = r"(?:[0-9]+(?:[.,:][0-9]+)*|\.[0-9]+)"
_BRACED = r"\{(?:[^{}\n]|\{[^{}\n]*\})*\}"
_PIECE = rf"(?:{_NUMBER}|\\[A-Za-z]+|{_BRACED}|\([^()\n]*\)|\[[^\[\]\n]*\]|[%!])"
_OPERATOR = r"[ ]?(?:\*\*|[-+*/^_=])[ ]?"
# Outside formulas "1/2", "(2)(3)" and "3\sqrt{2}" are found whole: no part of them is the answer.
_BARE = (
    rf"(?<![^\s=(*\[\"'`>:€£¥₹])(?:[a-z] ?= ?)?-?"
    rf"(?={_NUMBER}|\([-0-9.\\]|\\(?:[dtc]?frac|sqrt|pi|text|infty)(?![A-Za-z]))"
    rf"{_PIECE}(?:(?:{_OPERATOR})?{_PIECE})*"
)
# "$20 and gets $16 back", "$15/3 = 5 hours": words follow on the line, and the next dollar sign, if any, opens. "$3*5 =
# $15": no formula ends in an operator.
_MONEY = (
    r"\$[ ]?(?P<money>[0-9][0-9,]*(?:\.[0-9]+)?)"
    r"(?=[.,;:!?)*]*(?:[^$\n\\^_{}]*[A-Za-z]{2,}[^$\n\\^_{}]*(?:(?<=[\s(])\$(?=\S)|\n|\Z)|\s*(?:\n|\Z)"
    r"|[^$\n]*[-+*/=x×÷][ \t]*\$[ ]?[0-9]))"
)
_ROWS = r"\\begin\{(?:align|gather|multline|equation|eqnarray)\*?\}"
_TOKEN = re.compile(
    rf"{_MONEY}|\$\$(?P<display>.+?)\$\$|\\\[(?P<bracket>.+?)\\\]|\\\((?P<paren>.+?)\\\)|\$(?P<dollar>[^$\n]+)\$"
    rf"|{_ROWS}(?P<rows>.*?){_ROWS.replace('begin', 'end')}"
    rf"|(?P<broken>(?:\$\$|\\[\[(]|{_ROWS}).*|\$[^$\n]*)|(?P<bare>{_BARE})",
    re.DOTALL,
)

_AND = re.compile(r"[\s*]*(?:,?\s*(?:and|or)\b|,)[\s*]*")
_STATES = re.compile(r"\banswer\b[^.\n$]{0,60}?(?:\bis\b|:)[\s:*]*", re.IGNORECASE)
_CHOOSES = re.compile(r"\b(?:answer|choice|option)\b[^.\n$]{0,60}?(?:\bis\b|:)[\s:*]*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?:\s|\Z)|\n")
_CLAUSE = re.compile(r"(?<!\\)[,;](?!\s*(?:and|or)\b)|(?<=\w)\**\s+\((?![A-Z]\))|\s(?:because|since|as|who|which)\b")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_TEXT = re.compile(r"\\(?:text[a-z]*|mbox|mathrm|begin|end)\s*\{[^{}]*\}")
_DELIMITER = re.compile(r"\$|(?<!\\)\\[][()]|\\(?:begin|end)\{(?!\w?matrix|array)")
_BOLD = re.compile(r"\*\*([^*\n]+)\*\*")
_FIGURE = re.compile(r"\[asy\].*?(?:\[/asy\]|\Z)", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_BETWEEN_BOXES = re.compile(r"[\s$]*(?:,?\s*(?:and|or)\b|[,;])[\s$]*(?:[a-z]\s*=\s*)?[\s$]*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_NEAR = 50  # characters between "answer is" and the answer, as in math-verify

_ROW_MARK = re.compile(r"\\(?:begin|end)\{(?:aligned|split|gathered)\}|(?<!\\)&|\\(?:tag|label)\{[^{}]*\}")
_NAME = re.compile(r"\s*\\?[A-Za-z]+(?:_\S+)?[\s.,]*")
_UNSOLVED = re.compile(r"[0-9]\s*[A-Za-z(\\]|[-+*/^]|\\(?:frac|sqrt|cdot|times)")


def stated_answers(text: str) -> list[str]:
    r"""Returns the answer's LaTeX: the last ``\boxed{}``, or after "answer is", or the last formula or number.

    An unclosed last box states nothing, nor does a text that breaks off within a formula. Neighbours joined by "and",
    "or" or a comma are returned together; unsolved equations are left out beside solved ones: ``$5x=30$ and $x=6$``
    states ``x=6``. A lone name, as in "6 values of $x$", is skipped.

    Args:
        text: A completion.

    Returns:
        The LaTeX without dollar signs; several if they are joined, empty if nothing is stated.
    """
    if _BOX.search(text):
        return _boxes(text)
    text = _FIGURE.sub("", text).replace("\\$", "").rstrip()
    tokens = list(_TOKEN.finditer(text))
    whole = [token for token in tokens if token["broken"] is None]
    if statements := list(_STATES.finditer(text)):
        start = statements[-1].end()
        if alone := _without_words(_sentence(text, start)):
            return [alone]
        for index, token in enumerate(whole):
            if start <= token.start() <= start + _NEAR:
                return _joined(whole, index)
    if alone := _without_words(text.rpartition("\n")[2]):
        return [alone]
    if tokens and tokens[-1]["broken"] is not None and tokens[-1].end() == len(text):
        return []
    telling = [token for token in whole if not _NAME.fullmatch(_content(token))] or whole
    return _joined(whole, whole.index(telling[-1])) if telling else []


def stated_words(text: str) -> str | None:
    """Returns a stated word or choice, like `stated_answers`: a box, a sentence's rest, bold, a formula or all."""
    if _BOX.search(text):
        return ", ".join(_boxes(text)) or None
    if statements := list(_CHOOSES.finditer(text)):
        return _CLAUSE.split(_sentence(text, statements[-1].end()))[0]
    formulas = [_content(token) for token in _TOKEN.finditer(text) if token.lastgroup not in ("broken", "bare")]
    bold = [str(found[1]) for found in _BOLD.finditer(text)]
    return [text, *formulas[-1:], *bold[-1:]][-1]


def is_list(answers: list[str]) -> bool:
    """Returns whether joint answers are values of one quantity: ``2, 3`` and ``x=2, x=3``; not ``c=14, a=504``."""
    names = [_left(answer) for answer in answers]
    return all(name in ("", names[0]) for name in names)


def closing_brace(text: str, start: int) -> int | None:
    """Returns the index of the brace that closes the one at ``start``."""
    depth = 0
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.start()
    return None


def _sentence(text: str, start: int) -> str:
    """Returns the rest of the sentence or line."""
    end = _SENTENCE_END.search(text, start)
    return text[start : end.start() if end else len(text)]


def _without_words(sentence: str) -> str | None:
    """Returns the sentence if it is a formula without dollar signs."""
    formula = sentence.lstrip("*_#` ").rstrip("*_` .")
    is_prose = _DELIMITER.search(formula) or _WORD.search(_TEXT.sub("", formula))
    return formula if any(map(str.isalnum, formula)) and not is_prose else None


def _boxes(text: str) -> list[str]:
    r"""Returns the last box, with boxes before it that are separated only by "and", "or" or a comma."""
    *_, last = boxes = list(_BOX.finditer(text))
    if not text.startswith("{", last.end()):  # "\boxed 7"
        return re.split(r"[\n$]", text[last.end() :])[:1]
    contents: list[str] = []
    following = len(text)
    for box in reversed(boxes):
        end = closing_brace(text, box.end()) if text.startswith("{", box.end()) else None
        if contents and (end is None or not _BETWEEN_BOXES.fullmatch(text, end + 1, following)):
            break
        if end is None:
            return []
        contents.insert(0, text[box.end() + 1 : end])
        following = box.start()
    return contents


def _joined(tokens: Sequence[re.Match[str]], index: int) -> list[str]:
    """Returns the token's content, and its neighbours' if all of them or none of them are formulas."""
    first = last = index
    while first > 0 and _are_joined(tokens[first - 1], tokens[first]):
        first -= 1
    while last + 1 < len(tokens) and _are_joined(tokens[last], tokens[last + 1]):
        last += 1
    contents = [_content(token) for token in tokens[first : last + 1]]
    return [each for each in contents if not _UNSOLVED.search(_left(each))] or contents


def _left(answer: str) -> str:
    left, sign, _ = answer.partition("=")
    return left.strip() if sign else ""


def _are_joined(one: re.Match[str], other: re.Match[str]) -> bool:
    is_same_kind = (one["bare"] is None) == (other["bare"] is None)
    return is_same_kind and _AND.fullmatch(one.string, one.end(), other.start()) is not None


def _content(token: re.Match[str]) -> str:
    """Returns the formula; the last row of one in several rows."""
    content: str = token[token.lastgroup or 0]
    rows = _ROW_MARK.sub("", content)
    if "\\begin" in rows or (token["rows"] is None and rows == content):
        return content
    return ["", *(row for row in rows.split(r"\\") if row.strip())][-1].lstrip(" =\n")
