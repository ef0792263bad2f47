"""Errors a user can cause. Commands print them as one line and exit with code 2; library callers catch `ValueError`."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in the input: the rule, what was expected, what came, the way out, in one line."""
