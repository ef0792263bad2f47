"""Reads JSON from untrusted files."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from reft_math.errors import UserError

T = TypeVar("T")
_HALF = re.compile("[\ud800-\udfff]")


def parse_json(text: str | bytes) -> Any:
    """Parses UTF-8 JSON text, with or without a byte order mark.

    Raises:
        ValueError: It is invalid, in one line; a `json.JSONDecodeError` or `UnicodeDecodeError` if the place is known.
    """
    return json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)


def read_object(path: Path) -> dict[str, Any]:
    """Reads the JSON object in a file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds something else; the message is the reason in one line.
    """
    value = parse_json(path.read_bytes())
    if not isinstance(value, dict):
        raise ValueError(f"must hold a JSON object; it holds {type(value).__name__}")
    return value


def is_whole(text: str) -> bool:
    """Returns whether a file can hold the text: JSON can escape lone surrogates, which tokenizers and files refuse."""
    return _HALF.search(text) is None


def from_json(cls: type[T], values: Mapping[str, Any]) -> T:
    """Returns ``cls(**values)``, with lists converted to tuples.

    Args:
        cls: A dataclass.
        values: A JSON object.

    Raises:
        UserError: A field is missing, unknown, or of another type, or the class itself refuses a value.
    """
    hints = get_type_hints(cls)
    for mistake, names in (("unknown", values.keys() - hints.keys()), ("missing", hints.keys() - values.keys())):
        if names:
            raise UserError(f"its fields are {', '.join(hints)}; {mistake}: {', '.join(sorted(names))[:200]}")
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    for name, value in found.items():
        if not _fits(value, hints[name]):
            raise UserError(f"{name} must be {_shown(hints[name])}; got {values[name]!r:.200}")
    return cls(**found)


def _fits(value: Any, hint: Any) -> bool:
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is Literal:
        return value in parts
    if kind is dict:
        return isinstance(value, dict) and all(_fits(item, parts[1]) for item in value.values())
    if kind is tuple:
        hints = parts[:1] * len(value) if isinstance(value, tuple) and parts[-1] is ... else parts
        return isinstance(value, tuple) and len(value) == len(hints) and all(map(_fits, value, hints))
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max  # also false for NaN
    return isinstance(value, hint)


def _shown(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_shown, get_args(hint)))
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is not None:
        return str(hint)
    return "null" if hint is NoneType else str(hint.__name__)
