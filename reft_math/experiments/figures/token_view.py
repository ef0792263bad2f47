"""Draws completions token by token, coloured by the divergence of the two models, on a self-contained HTML page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from interventions.gates import Direction
from reft_math.experiments.figures.pages import render_page

FULL_COLOUR = 4.0  # nats: a token is 50 times as likely under one model as under the other; larger values look the same
_TICKS = (0, 0.1, 0.5, 1, 2, 4)  # nats; the last at `FULL_COLOUR`


@dataclass(frozen=True)
class Token:
    """One drawn token.

    Attributes:
        token_id, name: Number and entry in the vocabulary.
        text: Text added to the completion; "" for end tokens and for the first bytes of a character.
        kl: ``D_t`` in nats; None where only one model ran.
    """

    token_id: int
    name: str
    text: str
    kl: float | None = None


@dataclass(frozen=True)
class Answer:
    """A completion by one decoder.

    Attributes:
        decoder: Name of the decoder on the page.
        tokens: All drawn tokens, numbered from 0.
        is_correct, is_finished: Its score, and whether it ended by itself.
        closing_position: The first token that the base drew; None if the gate did not close.
        threshold: ``τ`` in nats, of a gate that measures divergence.
        dead_band: Nats per token that the gate does not count.
    """

    decoder: str
    tokens: Sequence[Token]
    is_correct: bool
    is_finished: bool = True
    closing_position: int | None = None
    threshold: float = math.inf
    dead_band: float = 0.0

    def cumulative_kl(self) -> list[float]:
        """``C_t = Σ_{s≤t} max(0, D_s − δ)`` of every token; constant where it was not measured."""
        return list(accumulate(max((token.kl or 0.0) - self.dead_band, 0.0) for token in self.tokens))

    def why_closed(self) -> str:
        """Returns the numbers that closed the gate."""
        position = self.closing_position
        assert position is not None
        cumulative = self.cumulative_kl()[position]
        if self.tokens[position].kl is None:  # a gate that counts closes before both models run
            return f"gate closed at token {position} by count, C = {cumulative:.3g} nats"
        # Enough digits to show that it is more.
        digits = next(n for n in range(3, 18) if n == 17 or float(f"{cumulative:.{n}g}") > self.threshold)
        threshold = repr(self.threshold).removesuffix(".0")
        return f"gate closed at token {position}, C = {cumulative:.{digits}g} nats > {threshold}"


@dataclass(frozen=True)
class AnsweredProblem:
    """A problem and its answers, one by each decoder, decoders in the same order for all problems."""

    id: str
    question: str
    gold: str
    answers: Sequence[Answer]


def token_texts(token_ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """Returns the text that each token adds: ``"".join(token_texts(ids, decode)) == decode(ids)``.

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
    """Returns ``min(1, √(D / 4 nats))``, the place of a divergence on the colour scale, 0 to 1."""
    return min(1.0, math.sqrt(kl / FULL_COLOUR))


def token_view(
    problems: Sequence[AnsweredProblem],
    settings: Mapping[str, str],
    provenance: Mapping[str, str],
    direction: Direction = "mod||base",
) -> str:
    """Makes the page: settings and legend, a section per problem with its answers side by side, provenance.

    Args:
        problems: At least one.
        settings: Names and values for the head.
        provenance: Names and values for the foot.
        direction: Direction of the divergence, for the legend.

    Returns:
        HTML. Text from problems and models is never markup.
    """
    title = "Token view: " + ", ".join(settings[name] for name in ("dataset", "gate") if name in settings)
    return render_page(
        "token_view",
        title=title,
        settings={**settings, "right answers": _scores(problems)},
        ticks=_TICKS,
        level=colour_level,
        direction=direction,
        problems=problems,
        provenance=provenance,
    )


def _scores(problems: Sequence[AnsweredProblem]) -> str:
    by_decoder = zip(*(problem.answers for problem in problems), strict=True)
    counts = (
        f"{answers[0].decoder} {sum(answer.is_correct for answer in answers)} of {len(answers)}"
        for answers in by_decoder
    )
    return ", ".join(counts)
