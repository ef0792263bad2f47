r"""Normalises answers in LaTeX, so that math-verify compares them as a reader does."""

from __future__ import annotations

import re

from reft_math.scoring.answer_text import closing_brace

_SIGNS = str.maketrans(
    {
        **{"°": r"^\circ ", "º": r"^\circ ", "π": r"\pi ", "∞": r"\infty ", "∅": r"\emptyset ", "∈": r"\in "},
        **{"×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "±": r"\pm ", "∪": r"\cup ", "∩": r"\cap "},
        **{"≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "ℝ": r"\mathbb{R}", "√": r"\sqrt"},
        **{chr(0x2080 + digit): f"_{digit}" for digit in range(10)},
    }
)
_ROOT = re.compile(r"√\s*([0-9]+(?:\.[0-9]+)?|[A-Za-z])")
_ROOT_OF = re.compile(r"\\?(?<![A-Za-z])sqrt\s*\(([^()]*)\)")
_ROW_GAP = re.compile(r"\\\\\s*\[-?[0-9.]+\s*[a-z]{2}\]")

_COLOUR = re.compile(r"\\(?:text)?color(?:box)?\s*(?:\[[^\]]*\])?\s*\{[^{}]*\}")
_STYLE = re.compile(
    r"\\(?:boldsymbol|bold|bm|pmb|math(?:bf|it|sf|tt|normal)|underline|ensuremath|(?:display|text|script)style|rm|bf|small|"
    r"normalsize|[lL]arge|LARGE|[hH]uge)(?![A-Za-z])\s*"
)
_SIZE = re.compile(r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?")
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)|mbox|mathrm)\s*(?=\{(?![Td]\}))")
_MATRIX = re.compile(r"\{(?:small)?([a-zA-Z]?matrix)\*?\}(?:\[[lcr]\])?")
_SPACE = re.compile(r"(?<!\\)\\(?:[,;:()\[\] ]|q?quad(?![A-Za-z])|[hv]space\*?\{[^{}]*\})|~|\s+")
_CURRENCY = re.compile(r"\\?\$|[€£¥₹]|\\(?:pounds|euro)(?![A-Za-z])")
_NUMBER_IN_TEXT = re.compile(r"\\text\{\s*([^{}A-Za-z\\]*[0-9])\s*([A-Za-z%][^{}0-9]*)?\}")
_UNIT = re.compile(
    r"(?<=[^\s=<>(,_^])\s*(?:\\text\{(?!i\})[^{}]*\}|\^?\\degree|(?<![A-Za-z])(?:dollars|USD|euros?|cents|degrees|units|[ckm]m|ft|in|yd))"
    r"(?:\^(?:[23]|\{[23]\}))?\Z"
)
_WORDS = re.compile(r"\\text\{[^{}0-9]*[A-Za-z][^{}0-9]*\}|\([A-Z]\)")
_IMAGINARY = re.compile(r"(?<![A-Za-z\\])(?:\\text\{i\}|\\imath(?![A-Za-z])|i(?![A-Za-z]))(\s*\^)?")
_PERCENT = re.compile(r"\s*(?:\\?%|\\text\{\s*per\s?cent\s*\}|\bper\s?cent\b)")
_CONSEQUENCE = re.compile(r"\\(?:Rightarrow|Longrightarrow|Leftrightarrow|implies|iff|therefore)(?![A-Za-z])")
_LOGIC = re.compile(r"\\(?:(lor|vee)|land|wedge)(?![A-Za-z])")
_MODULUS = re.compile(r"\\pmod\s*(?:\{[^{}]*\}|[0-9]+)|\(\\(?:mod|bmod)[^()]*\)")
_SIDE = re.compile(r"\\[{}]|[][(){};]|,(?!(?:\\!\s*)?[0-9]{3}(?![0-9]))|(?<![<>!])=|\\(?:approx|equiv)(?![A-Za-z])")
_SET_OF = re.compile(r"\\\{\s*[a-z]\s*(?:\\in\s*\\mathbb\{R\}\s*)?(?:\\mid|\\vert|\||:)(.*)\\\}\Z")

_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_BASES |= {"eleven": 11, "twelve": 12, "sixteen": 16}
_BASE_NAME = rf"([0-9]+|{'|'.join(_BASES)})"
_IN_BASE = re.compile(rf"(?<=[0-9])(\$?)\s*\(?(?:in )?base \$?{_BASE_NAME}\b\$?\)?")
_BASE = re.compile(
    r"\(?([0-9A-Za-z]*[0-9][0-9A-Za-z]*)\)?\s*(?:_\s*\{?|\\text\{|(?=base))\s*(?:\\text\{)?\s*\(?\s*(?:in )?"
    rf"(?:base\s*\}}?\s*)?{_BASE_NAME}\s*\)?\s*\}}*\Z"
)


def latex_signs(text: str) -> str:
    r"""Writes mathematical signs as LaTeX, and rows without gaps: ``3√2``, ``°``, ``\\[4pt]``."""
    text = _ROOT.sub(r"\\sqrt{\1}", text).translate(_SIGNS)
    text = _IN_BASE.sub(r"_{\2}\1", text)
    return _ROW_GAP.sub(r"\\\\", _ROOT_OF.sub(r"\\sqrt{\1}", text))


def normal_form(answer: str) -> str:
    r"""Removes styles, sizes, spaces, currency, and a final unit or full stop from an answer.

    ``\boldsymbol{42}.`` becomes ``42``, ``\text{36 dollars}`` 36, ``x \Rightarrow y`` ``y``, ``\{x \mid x > 2\}``
    ``x > 2``.

    Args:
        answer: LaTeX without dollar signs around it.
    """
    text = _CONSEQUENCE.split(latex_signs(answer))[-1]
    text = _without_styles(_COLOUR.sub(r"\\boldsymbol ", text))
    text = _MATRIX.sub(r"{\1}", text)
    text = _SPACE.sub(" ", _TEXT.sub(r"\\text", _SIZE.sub("", _CURRENCY.sub("", text))))
    text = _NUMBER_IN_TEXT.sub(lambda found: found[1] + (rf"\text{{{found[2]}}}" if found[2] else ""), text)
    text = _LOGIC.sub(lambda found: r"\text{ or }" if found[1] else r"\text{ and }", text)
    text = _MODULUS.sub("", text).replace("!=", "! =").strip().rstrip(".,;: \\")
    while text.startswith("{") and closing_brace(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    text = _SET_OF.sub(r"\1", text)
    return _UNIT.sub("", text) if not _BASE.match(text) else text


def _without_styles(text: str) -> str:
    r"""Returns ``\\boldsymbol{42}`` and ``\\bf 42`` as ``42``."""
    for style in reversed(list(_STYLE.finditer(text))):
        rest = text[style.end() :]
        if rest.startswith("{") and (end := closing_brace(rest, 0)) is not None:
            rest = rest[1:end] + rest[end + 1 :]
        text = text[: style.start()] + rest
    return text


def last_sides(answer: str) -> list[str]:
    r"""Returns a chain of equations' last side that is not a lone name; with ``\approx`` also the one before.

    ``2 \cdot 5! = 240`` gives ``240``, ``1/7 \approx 0.14`` both. A list, with commas outside brackets, is kept.
    """
    depth, start = 0, 0
    sides: list[str] = []
    is_rounded = False
    for mark in _SIDE.finditer(answer):
        if mark[0][-1] in "([{":
            depth += 1
        elif mark[0][-1] in ")]}":
            depth -= 1
        elif depth == 0 and mark[0] in ",;":
            return [answer]
        elif depth == 0:
            sides.append(answer[start : mark.start()])
            start, is_rounded = mark.end(), mark[0] == "\\approx"
    sides.append(answer[start:])
    while len(sides) > 1 and re.fullmatch(r"\s*[A-Za-z]?\s*", sides[-1]):
        sides.pop()
        is_rounded = False
    return sides[-2:] if is_rounded else sides[-1:]


def without_percent(answer: str) -> tuple[str, bool]:
    """Returns the answer without percent signs, and whether there were any."""
    bare = _PERCENT.sub("", answer)
    return bare, bare != answer


def with_imaginary_unit(answer: str) -> str:
    """Writes a lone letter i as ``(I)`` or ``I``, math-verify's square root of -1, whose powers it would drop."""
    return _IMAGINARY.sub(lambda found: "(I)^" if found[1] else " I ", answer)


def digits_and_base(answer: str) -> tuple[str, int | None]:
    r"""Splits ``52_8``, ``52_{\text{eight}}`` and ``52 base 8`` into the digits 52 and the base 8, None without one."""
    found = _BASE.match(answer.rsplit("=", 1)[-1].strip())
    if found is None:
        return answer, None
    digits, base = found.groups()
    return digits, int(base) if base.isdigit() else _BASES[base]


def plain_words(text: str) -> str:
    r"""Returns the words without markup, in lower case: ``\textbf{(C)}`` as ``(c)``, ``**Evelyn**.`` as ``evelyn``."""
    text = re.sub(r"\\\W|[~]", " ", re.sub(r"\\[A-Za-z]+\s*|[{}$*_\"`]", "", _COLOUR.sub("", text)))
    text = " ".join(text.split()).strip(" .,;:!").casefold()
    return re.sub(r"^(?:(?:therefore|thus|the|an?|option|choice|answer)\s+(?=.))+", "", text)


def choice(text: str) -> str | None:
    """Returns the letter of a choice after `plain_words`: ``(c)``, ``c``, ``c) 12`` and ``(c) 12``."""
    found = re.match(r"\(([a-z])\)|([a-z])(?:[.:)]|\Z)", text)
    return found and (found[1] or found[2])


def is_wordy(gold: str) -> bool:
    """Returns whether a reference answer is a word, or a choice written as text."""
    return _WORDS.fullmatch(_TEXT.sub(r"\\text", gold.strip())) is not None
