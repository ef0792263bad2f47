"""Reads JSON from untrusted files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

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
