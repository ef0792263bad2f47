"""Errors a user can cause. Commands print them as one line and exit with code 2; library callers catch `ValueError`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_LONGEST = 2_000
_CUT = " […] "


def printable(text: str) -> str:
    """Returns text for one line of a terminal, with line breaks and control characters escaped."""
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text)


class UserError(ValueError):
    """A mistake in the input. Its one line gives the rule, the expected and the given value, and the way out.

    What came may be a stranger's: line breaks and a terminal's control characters are shown as escapes. What is too
    long for a line loses its middle: the rule stands first, and the way out last.
    """

    def __init__(self, message: str) -> None:
        if len(message) > _LONGEST:
            kept = _LONGEST - len(_CUT)
            message = message[: kept // 2] + _CUT + message[-(kept - kept // 2) :]
        super().__init__(printable(message))


class Unfinished(UserError):
    """Raised when work on several rows has stopped for good.

    Attributes:
        done: What became of the rows that were finished: none of it need be done again. An engine and completions go by
            a row's place in what was asked, records by its id.
    """

    def __init__(self, message: str, done: Mapping[Any, Any]) -> None:
        super().__init__(message)
        self.done = done


def require(options: object, name: str, holds: Callable[[Any], bool], rule: str) -> None:
    """Raises `UserError`, naming the flag, if a setting breaks its rule."""
    value = getattr(options, name)
    if not holds(value):
        raise UserError(f"--{name.replace('_', '-')} must be {rule}; got {value}")


def require_there(options: object, *names: str) -> None:
    """Raises `UserError` where an option's value reads as a path and no file or folder is there.

    Hub ids have one slash at most, but for ``org/repo/file.gguf``; what may be one is left to the loader.
    """
    for name in names:
        values = getattr(options, name, None)
        for value in [values] if isinstance(values, str) else values or ():
            is_path = (
                value.startswith((".", "/", "~"))
                or value.endswith((".json", ".jsonl"))
                or (value.count("/") > 1 and not value.endswith(".gguf"))
            )
            if is_path and not Path(value).exists():
                raise UserError(
                    f"--{name.replace('_', '-')} names a path, and nothing is there: {value}"
                    " (paths start from the working folder)"
                )


def require_seed(options: object) -> None:
    """Raises `UserError` if numpy does not accept ``seed``."""
    require(options, "seed", lambda value: value is None or 0 <= value < 2**32, "from 0 to 4294967295")


def require_temperature(options: object) -> None:
    """Raises `UserError` if logits divided by ``temperature`` might exceed float32."""
    rule = "at least 1e-6 and finite (without it decoding is greedy)"
    require(options, "temperature", lambda value: value is None or 1e-6 <= value < math.inf, rule)


def require_different(runs: Sequence[str]) -> None:
    """Raises `UserError` if a run is named twice."""
    if len({Path(name).resolve() for name in runs}) < len(runs):
        raise UserError(f"--runs must be different runs; got {' '.join(runs)}")


def require_one_process(what: str) -> None:
    """Raises `UserError` under ``torchrun``."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{what} is made by one process; run it without torchrun")
