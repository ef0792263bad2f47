"""JSON of files that anybody may have written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_HALF = re.compile("[\ud800-\udfff]")


def parse_json(text: str | bytes) -> Any:
    """The value that UTF-8 text holds, with or without a byte order mark.

    Raises:
        ValueError: It holds none, in one line; a `json.JSONDecodeError` or `UnicodeDecodeError` where it has a place.
    """
    return json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds something else; the reason in one line.
    """
    value = parse_json(path.read_bytes())
    if not isinstance(value, dict):
        raise ValueError(f"must hold a JSON object; it holds {type(value).__name__}")
    return value


def is_whole(text: str) -> bool:
    """Whether a file can hold the text: JSON can name halves of characters, which tokenizers and files refuse."""
    return _HALF.search(text) is None
