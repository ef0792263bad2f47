"""Gates: for how long interventions act in decoding."""

from __future__ import annotations

from dataclasses import dataclass

from reft_math.errors import UserError


@dataclass(frozen=True)
class Gate:
    """Interventions act while the first ``num_tokens`` tokens are drawn; then the base goes on alone.

    ``num_tokens = 0`` is the base, ``None`` is always on.
    """

    num_tokens: int | None

    def __str__(self) -> str:
        if self.num_tokens is None:
            return "always"
        return f"tokens:{self.num_tokens}" if self.num_tokens else "off"


def parse_gate(text: str) -> Gate:
    """``off``, ``always`` or ``tokens:N``.

    Raises:
        UserError: Anything else.
    """
    kind, _, number = text.partition(":")
    if kind == "tokens" and number.isdecimal() and int(number) > 0:
        return Gate(int(number))
    if text in ("off", "always"):
        return Gate(0 if text == "off" else None)
    raise UserError(f"a gate is 'off', 'always' or 'tokens:N' with N of at least 1; got {text!r}")
