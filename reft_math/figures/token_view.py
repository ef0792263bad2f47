"""Completions token by token, coloured by the divergence of the two models, as one self-contained HTML page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from xml.etree.ElementTree import Element

from reft_math.decoding.gate import Direction
from reft_math.figures.markup import document, tag

FULL_COLOUR = 4.0  # nats: the token is 50 times as likely to one model as to the other; more is drawn alike
_TICKS = (0, 0.1, 0.5, 1, 2, 4)


@dataclass(frozen=True)
class Token:
    """One drawn token.

    Attributes:
        token_id, name: Its number and entry in the vocabulary.
        text: What it adds to the completion; "" for end tokens and for the first bytes of a character.
        kl: ``D_t`` in nats; None where only one model read on.
    """

    token_id: int
    name: str
    text: str
    kl: float | None = None


@dataclass(frozen=True)
class Answer:
    """A completion by one decoder.

    Attributes:
        decoder: What drew it, as the page names it.
        tokens: All that were drawn, numbered from 0.
        is_correct, is_finished: Its score, and false where it was cut off.
        closing_position: The first token that the base drew; None where the gate did not close.
        threshold: ``τ`` in nats, of a gate that measures divergence.
        dead_band: Nats a token that it does not count.
    """

    decoder: str
    tokens: Sequence[Token]
    is_correct: bool
    is_finished: bool = True
    closing_position: int | None = None
    threshold: float = math.inf
    dead_band: float = 0.0

    def cumulative_kl(self) -> list[float]:
        """``C_t = Σ_{s≤t} max(0, D_s − δ)`` of every token; constant where nothing was measured."""
        return list(accumulate(max((token.kl or 0.0) - self.dead_band, 0.0) for token in self.tokens))


@dataclass(frozen=True)
class AnsweredProblem:
    """A problem and its answers, one by each decoder, decoders in the same order for all problems."""

    id: str
    question: str
    gold: str
    answers: Sequence[Answer]


def token_texts(token_ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """What each token adds to the text: ``"".join(token_texts(ids, decode)) == decode(ids)``.

    A character whose bytes are spread over several tokens comes with the last of them.
    """
    texts: list[str] = []
    before = ""
    for end in range(1, len(token_ids) + 1):
        text = decode(token_ids[:end])
        if text.endswith("\N{REPLACEMENT CHARACTER}") and end < len(token_ids):
            texts.append("")
        else:
            texts.append(text[len(before) :])
            before = text
    return texts


def colour_level(kl: float) -> float:
    """``min(1, √(D / 4 nats))``: how far along the colour scale a divergence lies, 0 to 1."""
    return min(1.0, math.sqrt(kl / FULL_COLOUR))


def token_view(
    problems: Sequence[AnsweredProblem],
    settings: Mapping[str, str],
    provenance: Mapping[str, str],
    direction: Direction = "mod||base",
) -> str:
    """The page: settings and legend, a section a problem with its answers side by side, provenance.

    Args:
        problems: At least one.
        settings: Names and values for the head.
        provenance: Names and values for the foot.
        direction: Of the divergence, for the legend.

    Returns:
        HTML. Text from problems and models is never markup: it goes in as text of a tree.
    """
    title = "Token view: " + ", ".join(settings[name] for name in ("dataset", "gate") if name in settings)
    scores = {"right answers": _scores(problems)}
    header = tag("header", tag("h1", title), _definitions({**settings, **scores}), _legend(direction))
    sections = [_section(number, problem) for number, problem in enumerate(problems, start=1)]
    return document(title, _STYLE, header, tag("main", *sections), tag("footer", _definitions(provenance)))


def _scores(problems: Sequence[AnsweredProblem]) -> str:
    by_decoder = zip(*(problem.answers for problem in problems), strict=True)
    counts = (
        f"{answers[0].decoder} {sum(answer.is_correct for answer in answers)} of {len(answers)}"
        for answers in by_decoder
    )
    return ", ".join(counts)


def _definitions(values: Mapping[str, str]) -> Element:
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in values.items()))


def _legend(direction: Direction) -> Element:
    formula = "D = KL(p_mod ‖ p_base)" if direction == "mod||base" else "D = KL(p_base ‖ p_mod)"
    ticks = [
        tag("span", f"{nats:g}" + ("+" if nats == FULL_COLOUR else ""), style=f"left: {colour_level(nats):.1%}")
        for nats in _TICKS
    ]
    return tag(
        "figure",
        tag("div", tag("div", class_="bar"), tag("div", *ticks, class_="ticks"), class_="scale"),
        tag(
            "figcaption",
            f"Colour: {formula} at the token, in nats, on a square-root scale; C is what the gate counts of D so far."
            " No colour: drawn by the base, or only one model read on. A mark stands where a gate closed, in the colour"
            " of the D that closed it. Tokens are numbered from 0; point at one for its figures.",
        ),
    )


def _section(number: int, problem: AnsweredProblem) -> Element:
    heading = f"problem-{number}"
    return tag(
        "section",
        tag("h2", f"Problem {number} ", tag("small", problem.id), id=heading),
        tag("p", problem.question, class_="question"),
        tag("p", "Gold answer: ", tag("strong", problem.gold)),
        tag("div", *map(_article, problem.answers), class_="answers"),
        aria_labelledby=heading,
    )


def _article(answer: Answer) -> Element:
    verdict = ("✓ right", "right") if answer.is_correct else ("✗ wrong", "wrong")
    is_measured = any(token.kl is not None for token in answer.tokens)
    facts = [f"{len(answer.tokens)} tokens"]
    facts += [f"C = {answer.cumulative_kl()[-1]:.3g} nats"] if is_measured else []
    facts += [] if answer.is_finished else ["cut off"]
    return tag(
        "article",
        tag("h3", f"{answer.decoder} ", tag("span", verdict[0], class_=verdict[1])),
        tag("p", " · ".join(facts), class_="facts"),
        tag("p", *_completion(answer), class_="completion"),
        *([_table(answer)] if is_measured else []),
    )


def _completion(answer: Answer) -> Iterator[Element]:
    for position, (token, cumulative) in enumerate(zip(answer.tokens, answer.cumulative_kl(), strict=True)):
        by_base = answer.closing_position is not None and position >= answer.closing_position
        if position == answer.closing_position:
            label = tag("span", _closing_text(answer, position), **_colour(token.kl))
            yield tag("mark", label, data_closing=str(position))
        title = f"“{token.text or token.name}”\ntoken {position}, id {token.token_id}"
        title += "" if token.kl is None else f"\nD = {token.kl:.3g} nats, C = {cumulative:.3g} nats"
        title += "\ndrawn by the base" if by_base else ""
        colour = {} if by_base else _colour(token.kl)
        yield tag("span", *_lines(token.text), title=title, data_position=str(position), data_name=token.name, **colour)


def _colour(kl: float | None) -> dict[str, str]:
    return {} if kl is None else {"data_kl": repr(kl), "style": f"--level: {colour_level(kl):.4f}"}


def _lines(text: str) -> Iterator[str | Element]:
    """The text, a sign that the style sheet draws before each line break: copied text stays as it was."""
    first, *others = text.split("\n")
    yield first
    for line in others:
        yield tag("i", class_="newline")
        yield "\n" + line


def _closing_text(answer: Answer, position: int) -> str:
    cumulative = answer.cumulative_kl()[position]
    if answer.tokens[position].kl is None:  # a gate that counts closes before both models read on
        return f"gate closed at token {position} by count, C = {cumulative:.3g} nats"
    # As many digits as show that it is more.
    digits = next(n for n in range(3, 18) if n == 17 or float(f"{cumulative:.{n}g}") > answer.threshold)
    threshold = repr(answer.threshold).removesuffix(".0")
    return f"gate closed at token {position}, C = {cumulative:.{digits}g} nats > {threshold}"


def _table(answer: Answer) -> Element:
    """The figures of the tooltips for those who read without a pointer."""
    columns = ("token", "text", "id", "D, nats", "C, nats")
    rows = (
        (str(position), token.text or token.name, str(token.token_id), f"{token.kl:.3g}", f"{cumulative:.3g}")
        for position, (token, cumulative) in enumerate(zip(answer.tokens, answer.cumulative_kl(), strict=True))
        if token.kl is not None
    )
    head = tag("tr", *(tag("th", name, scope="col") for name in columns))
    body = [tag("tr", *(tag("td", *_lines(cell)) for cell in row)) for row in rows]
    return tag(
        "details",
        tag("summary", "D and C token by token"),
        tag("table", tag("thead", head), tag("tbody", *body)),
    )


# One hue from pale to strong, mixed in OKLab, where equal steps look equal; both ends leave text at a contrast of 4.5.
_STYLE = """
:root {
  color-scheme: light dark;
  --page: #fff; --card: #f7f7f8; --text: #1b1b1f; --quiet: #5b5b66; --line: #d9d9df;
  --low: oklch(0.955 0.022 60); --high: oklch(0.7 0.18 48);
  --right: #00694a; --wrong: #a3243b; --closing: #0a5a9c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #17171a; --card: #1f1f24; --text: #ececf0; --quiet: #a8a8b3; --line: #3a3a42;
    --low: oklch(0.3 0.025 60); --high: oklch(0.52 0.15 45);
    --right: #5fcfa5; --wrong: #ff8f9f; --closing: #7cc0f5;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 90rem; padding: 1.5rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
  print-color-adjust: exact; -webkit-print-color-adjust: exact;
}
h1 { font-size: 1.5rem; margin: 0 0 0.75rem; }
h2 { font-size: 1.2rem; margin: 0 0 0.25rem; }
h3 { font-size: 1rem; margin: 0; display: flex; justify-content: space-between; }
p { margin: 0 0 0.5rem; }
small, .facts, dt, figcaption, footer { color: var(--quiet); font-weight: normal; font-size: 0.85rem; }
dl { display: flex; flex-wrap: wrap; gap: 0.5rem 1.5rem; margin: 0 0 1rem; }
dd { margin: 0; }
figure { display: flex; flex-wrap: wrap; gap: 0.5rem 2rem; margin: 0; }
figcaption { flex: 1 1 24rem; max-width: 48rem; }
.scale { flex: 0 1 20rem; min-width: 14rem; padding-right: 1rem; font-size: 0.8rem; }
.bar { height: 0.9rem; border-radius: 3px; background: linear-gradient(in oklab to right, var(--low), var(--high)); }
.ticks { position: relative; height: 1.2rem; }
.ticks span { position: absolute; transform: translateX(-50%); white-space: nowrap; }
.ticks span:first-child { transform: none; }
section { border-top: 1px solid var(--line); margin-top: 1.5rem; padding-top: 1rem; }
.question { max-width: 60rem; white-space: pre-wrap; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: 1rem; }
article {
  min-width: 0; padding: 0.75rem 1rem; border: 1px solid var(--line); border-radius: 6px; background: var(--card);
}
.right { color: var(--right); }
.wrong { color: var(--wrong); }
.completion, td:nth-child(2) { font-family: ui-monospace, monospace; white-space: pre-wrap; }
.completion { position: relative; container-type: inline-size; line-height: 1.9; }
[data-position] { padding: 0.15em 0; border-radius: 2px; }
[data-kl] { background-color: color-mix(in oklab, var(--high) calc(var(--level) * 100%), var(--low)); }
[data-position][data-kl] { box-shadow: inset -1px 0 var(--card); }
[data-position]:hover { outline: 2px solid var(--text); }
[data-position]:empty::before { content: attr(data-name); color: var(--quiet); font-size: 0.85em; }
[data-position][data-kl]:empty::before { color: inherit; }
.newline::before { content: "↵"; font-style: normal; opacity: 0.75; }
mark {
  display: inline-block; width: 3px; height: 3rem; margin: 0 1px; vertical-align: text-bottom;
  background: var(--closing); user-select: none;
}
mark span {
  position: absolute; left: 0; right: 0; padding: 0 0.4rem; border: 2px solid var(--closing); border-radius: 3px;
  background-color: var(--card); color: var(--text); font: 600 min(0.75rem, 3.5cqi) / 1.4 system-ui, sans-serif;
  white-space: nowrap;
}
details { font-size: 0.85rem; }
summary { cursor: pointer; color: var(--quiet); }
table { border-collapse: collapse; width: 100%; }
th, td { padding: 0.1rem 0.4rem; text-align: right; border-bottom: 1px solid var(--line); }
th:nth-child(2), td:nth-child(2) { text-align: left; }
footer { border-top: 1px solid var(--line); margin-top: 1.5rem; padding-top: 1rem; }
@media print {
  body { padding: 0; max-width: none; font-size: 0.8rem; }
  article { break-inside: avoid; }
}
"""
