"""Gates decide how long interventions act in decoding. Pure functions of tensors and step numbers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch

from reft_math.errors import UserError

Direction = Literal["mod||base", "base||mod"]

# Nats per token that rounding alone causes, by the base's dtype: a little over its 99th percentile on a model of
# 135 M parameters (docs/gate.md). Divergence grows with the square of an error, and float16 rounds eight times finer.
DEAD_BANDS = {torch.bfloat16: 1e-2, torch.float16: 2e-4}

_NUMBER = re.compile(r"-?(inf|nan|[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?)")  # float() itself takes spaces and underscores


class Gate:
    """Decides for each row which model draws a token: the one with interventions while the gate is open, then the base.

    Tokens are numbered by ``step`` from 0. A gate that has closed stays closed; the caller keeps track of that.
    """

    def allows(self, step: int) -> bool:
        """Returns whether a gate may still be open at ``step``, whatever the divergence."""
        return True

    def on(self, dtype: torch.dtype) -> Gate:
        """Returns the gate with defaults resolved for a base of that dtype."""
        return self

    def counted(self, kl: torch.Tensor) -> torch.Tensor:
        """Returns the part of ``D_t``, in nats, that counts: ``C_t`` is its sum."""
        return kl

    def stays_open(self, step: int, cumulative_kl: torch.Tensor) -> torch.Tensor:
        """Returns whether open gates stay open at ``step``.

        Args:
            step: The token about to be drawn.
            cumulative_kl: ``C_t``, the sum of `counted` over all tokens up to and including this; nats, ``(rows,)``.

        Returns:
            Boolean, ``(rows,)``.
        """
        return torch.ones_like(cumulative_kl, dtype=torch.bool)


@dataclass(frozen=True)
class AlwaysOn(Gate):
    """Never closes: the model with interventions on its own."""

    def __str__(self) -> str:
        return "always"


@dataclass(frozen=True)
class PromptOnly(Gate):
    """Interventions act on the prompt only; generated tokens read its changed cache (pyreft's way)."""

    def __str__(self) -> str:
        return "prompt"


@dataclass(frozen=True)
class TokenGate(Gate):
    """Open for the first ``num_tokens`` tokens; with 0 the base runs alone."""

    num_tokens: int

    def __post_init__(self) -> None:
        if self.num_tokens < 0:
            raise UserError(f"a gate is open for 0 tokens or more; got {self.num_tokens}")

    def allows(self, step: int) -> bool:
        return step < self.num_tokens

    def __str__(self) -> str:
        return f"tokens:{self.num_tokens}" if self.num_tokens else "off"


@dataclass(frozen=True)
class KLGate(Gate):
    """Open at token t while ``C_t = Σ_{s≤t} max(0, D_s − δ) ≤ threshold``, in nats.

    The dead band δ subtracts from each token what rounding causes. It is subtracted from larger divergences, too, so
    that C does not jump where D passes δ; in half precision that much of them is rounding.

    Attributes:
        threshold: ``τ ≥ 0``, may be infinite.
        direction: ``mod||base``: ``D_t = KL(p_mod ‖ p_base)``; ``base||mod``: ``KL(p_base ‖ p_mod)``.
        min_tokens: Least number of tokens drawn with interventions, whatever the divergence.
        max_tokens: Greatest number of tokens drawn with interventions; None for no limit.
        dead_band: ``δ ≥ 0``. None takes the default of the base's dtype: 0 in float32, `DEAD_BANDS` in half
            precision; and 0 if τ is 0, which asks for the base's own tokens.
    """

    threshold: float
    direction: Direction = "mod||base"
    min_tokens: int = 0
    max_tokens: int | None = None
    dead_band: float | None = None

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise UserError(f"a gate's threshold is a number of nats, 0 or more; got {self.threshold}")
        if self.direction not in get_args(Direction):
            raise UserError(f"a gate's direction is {' or '.join(get_args(Direction))}; got {self.direction!r}")
        if not 0 <= self.min_tokens <= (math.inf if self.max_tokens is None else self.max_tokens):
            raise UserError(f"a gate needs 0 <= min <= max tokens; got min={self.min_tokens}, max={self.max_tokens}")
        if self.dead_band is not None and not 0 <= self.dead_band < math.inf:
            raise UserError(f"a gate's dead band is a number of nats a token, 0 or more; got {self.dead_band}")

    def allows(self, step: int) -> bool:
        return self.max_tokens is None or step < self.max_tokens

    def on(self, dtype: torch.dtype) -> KLGate:
        if self.dead_band is not None:
            return self
        return replace(self, dead_band=DEAD_BANDS.get(dtype, 0.0) if self.threshold > 0 else 0.0)

    def counted(self, kl: torch.Tensor) -> torch.Tensor:
        return (kl - self.dead_band).clamp(min=0) if self.dead_band else kl

    def stays_open(self, step: int, cumulative_kl: torch.Tensor) -> torch.Tensor:
        return (cumulative_kl <= self.threshold) | (step < self.min_tokens)

    def __str__(self) -> str:
        parts = [f"kl:{_written(self.threshold)}"]
        parts += [f"min={self.min_tokens}"] if self.min_tokens else []
        parts += [f"max={self.max_tokens}"] if self.max_tokens is not None else []
        parts += [f"band={_written(self.dead_band)}"] if self.dead_band is not None else []
        parts += [self.direction] if self.direction != "mod||base" else []
        return ",".join(parts)


def _written(nats: float) -> str:
    return repr(float(nats)).removesuffix(".0")


def kl_divergence(
    mod_logits: torch.Tensor, base_logits: torch.Tensor, direction: Direction = "mod||base"
) -> torch.Tensor:
    """Returns ``D = Σ_v p(v) (log p(v) − log q(v))`` over the vocabulary, in nats; p is the first of ``direction``.

    Exactly 0 for equal logits, infinite if q excludes a token that p allows, never below 0 by rounding. NaN if logits
    are NaN, which closes every gate.

    Args:
        mod_logits, base_logits: Raw logits ``(rows, vocabulary)``; read in float32, or float64 if they are.
        direction: Names p, then q.

    Returns:
        ``(rows,)``.
    """
    dtype = torch.promote_types(mod_logits.dtype, torch.float32)
    mod, base = (logits.to(dtype).log_softmax(dim=-1) for logits in (mod_logits, base_logits))
    log_p, log_q = (mod, base) if direction == "mod||base" else (base, mod)
    p = log_p.exp()
    return torch.where(p == 0, 0, p * (log_p - log_q)).sum(dim=-1).clamp(min=0)


def parse_gate(text: str) -> Gate:
    """Parses a gate's text, the inverse of ``str``.

    ``off``, ``always``, ``prompt``, ``tokens:N``, or ``kl:T`` with, after commas, ``min=N``, ``max=N``, ``band=D``,
    ``base||mod``.

    Raises:
        UserError: The text is none of these.
    """
    if not isinstance(text, str):
        raise UserError(f"a gate is a Gate or its text; got {text!r}")
    simple: dict[str, Gate] = {"off": TokenGate(0), "always": AlwaysOn(), "prompt": PromptOnly()}
    kind, _, rest = text.partition(":")
    try:
        if text in simple:
            return simple[text]
        if kind == "tokens":
            return TokenGate(_count(rest))
        if kind == "kl":
            threshold, *parts = rest.split(",")
            options = dict(map(_kl_option, parts))
            if len(options) == len(parts) and _NUMBER.fullmatch(threshold):
                return KLGate(float(threshold), **options)
    except UserError:
        raise
    except ValueError:
        pass
    raise UserError(
        "a gate is 'off', 'always', 'prompt', 'tokens:N' or 'kl:NATS', the last as in 'kl:2' or"
        f" 'kl:2,min=1,max=40,base||mod'; got {text!r}"
    )


def _kl_option(text: str) -> tuple[str, Any]:
    if text in get_args(Direction):
        return "direction", text
    name, _, number = text.partition("=")
    if name == "band" and _NUMBER.fullmatch(number):
        return "dead_band", float(number)
    if name not in ("min", "max"):
        raise ValueError(text)
    return f"{name}_tokens", _count(number)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(text)
    return int(text)
