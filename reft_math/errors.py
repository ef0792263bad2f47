"""Errors a user can cause. Commands print them as one line and exit with code 2; library callers catch `ValueError`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class UserError(ValueError):
    """A mistake in the input: the rule, what was expected, what came, the way out, in one line."""


def require(options: object, name: str, holds: Callable[[Any], bool], rule: str) -> None:
    """Raises `UserError` where a setting breaks its rule, naming its flag."""
    value = getattr(options, name)
    if not holds(value):
        raise UserError(f"--{name.replace('_', '-')} must be {rule}; got {value}")
