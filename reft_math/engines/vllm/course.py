"""The course of a gated request through an engine that batches requests: drafts by the adapter, verified by the base.

While the gate is open, tokens are drawn by a request whose forward pass the adapter edits (`Draft`). The base then
reads prompt and draft in one pass (`Verify`): that gives ``D_t`` of every token drafted, and leaves the base's own
cache behind. The tokens before the one at which the gate closes are kept, and the base goes on as an ordinary request
(`Rest`).

This draws what decoding step by step draws: a token is drawn by the edited model from the tokens before it, ``D_t``
depends on these alone, and so whether a token is kept does not depend on itself. The price is the edited steps of
tokens that are not kept: at most `DRAFT_TOKENS`, or as many as are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import torch

from interventions.gates import AlwaysOn, Gate, KLGate, PromptOnly
from reft_math.errors import UserError

DRAFT_TOKENS = 16  # a KL gate's first draft; later ones are as long as what is written
LONGEST_DRAFT = 256  # the worker keeps a hidden state of each token, twice, until a draft is verified

Tokens = list[int]
StopIn = Callable[[Tokens], tuple[int, str] | None]


@dataclass(frozen=True)
class Draft:
    """Asks for tokens of the edited model after ``token_ids``; if ``is_verified`` a `Verify` follows."""

    token_ids: Tokens
    max_tokens: int
    is_verified: bool


@dataclass(frozen=True)
class Verify:
    """Asks for ``D_t`` of the draft's tokens: the base reads ``token_ids``, the text with the draft but its last."""

    token_ids: Tokens
    num_drafted: int


@dataclass(frozen=True)
class Rest:
    """Asks for tokens of the base after ``token_ids``."""

    token_ids: Tokens
    max_tokens: int


@dataclass(frozen=True)
class Written:
    """Answers `Draft` and `Rest`: tokens, with the end token if one was drawn, and how vLLM says that they ended."""

    token_ids: Sequence[int]
    finish_reason: str | None
    stop_reason: int | str | None = None

    @property
    def ended(self) -> bool:
        return self.finish_reason != "length"


@dataclass
class GateReport:
    """What a gate measured, as `interventions.pairs.GatedOutput` has it.

    Attributes:
        kl: ``D_t`` in nats, of the tokens that the gate was asked about; empty for ``always`` and ``prompt``.
        cumulative_kl: The sum of the part of ``D_t`` that the gate counts.
        closing_position: Index of the first token that the base drew; -1 if the row ended before.
        dead_band: Nats of each ``D_t`` that the gate does not count.
    """

    kl: list[float] = field(default_factory=list)
    cumulative_kl: float = 0.0
    closing_position: int = -1
    dead_band: float = 0.0


Ask = Draft | Verify | Rest
Course = Generator[Ask, Written | list[float], tuple[Written, GateReport]]


def course(prompt: Tokens, max_tokens: int, gate: Gate, stop_in: StopIn = lambda _: None) -> Course:
    """Yields what to ask of the engine, is sent the answers, and returns all tokens and the gate's report.

    Args:
        prompt: Token ids.
        max_tokens: Most tokens to write, at least 1.
        gate: A gate, with its defaults resolved for the base's dtype (`Gate.on`).
        stop_in: Finds a stop text in the tokens so far, which the engine misses where two drafts share it: the number
            of tokens with which it is complete, and the text.

    Raises:
        UserError: A divergence is NaN.
    """
    report, text = GateReport(dead_band=getattr(gate, "dead_band", None) or 0.0), Tokens()
    if isinstance(gate, AlwaysOn | PromptOnly):
        return (yield Draft(prompt, max_tokens, is_verified=False)), report  # type: ignore[return-value]
    while len(text) < max_tokens and gate.allows(len(text)):
        written = yield Draft(prompt + text, _draft_length(gate, len(text), max_tokens), is_verified=True)
        assert isinstance(written, Written)
        drafted = list(written.token_ids)
        divergences = yield Verify(prompt + text + drafted[:-1], len(drafted))
        assert isinstance(divergences, list)
        kept = _kept(gate, len(text), divergences, report)
        text += drafted[:kept]
        if (stop := stop_in(text)) is not None:
            report.kl = report.kl[: stop[0]]
            report.cumulative_kl = sum(_counted(gate, divergence) for divergence in report.kl)
            return Written(text[: stop[0]], "stop", stop[1]), report
        if kept < len(drafted):
            break
        if written.ended:
            return Written(text, written.finish_reason, written.stop_reason), report
    if len(text) == max_tokens:
        return Written(text, "length"), report
    report.closing_position = len(text)
    rest = yield Rest(prompt + text, max_tokens - len(text))
    assert isinstance(rest, Written)
    return Written([*text, *rest.token_ids], rest.finish_reason, rest.stop_reason), report


def _draft_length(gate: Gate, step: int, max_tokens: int) -> int:
    """Returns how many tokens to draft: what the gate surely allows, or a chunk of them."""
    longest = min(max(DRAFT_TOKENS, step) if isinstance(gate, KLGate) else max_tokens, LONGEST_DRAFT)
    length = 1
    while length < min(longest, max_tokens - step) and gate.allows(step + length):
        length += 1
    return length


def _kept(gate: Gate, step: int, divergences: list[float], report: GateReport) -> int:
    """Counts the drafted tokens before the gate closes, and adds to the report what the gate was asked about."""
    for index, divergence in enumerate(divergences):
        if math.isnan(divergence):  # infinity is valid: one of the two models excludes a token
            raise UserError(f"logits must be finite; those of token {step + index} are not: try dtype float32")
        report.kl.append(divergence)
        report.cumulative_kl += _counted(gate, divergence)
        if not gate.stays_open(step + index, torch.tensor([report.cumulative_kl])).item():
            return index
    return len(divergences)


def _counted(gate: Gate, divergence: float) -> float:
    return float(gate.counted(torch.tensor(divergence, dtype=torch.float64)))
