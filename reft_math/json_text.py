"""JSON of files that anybody may have written."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from reft_math.files import read_bytes

_HALF = re.compile("[\ud800-\udfff]")


def parse_json(text: str | bytes) -> Any:
    """The value, if the text is UTF-8 and says it once.

    Python's own reader takes the last of two values for one name, and leaves a deep nest by a `RecursionError`.

    Raises:
        ValueError: Anything else, in one line; a `json.JSONDecodeError` or `UnicodeDecodeError` where it has a place.
    """
    text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    try:
        return json.loads(text, object_pairs_hook=_named_once)
    except RecursionError:
        raise ValueError("lists or objects within one another, too deep to read") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds something else; the reason in one line.
    """
    value = parse_json(read_bytes(path))
    if not isinstance(value, dict):
        raise ValueError(f"must hold a JSON object; it holds {type(value).__name__}")
    return value


def is_whole(text: str) -> bool:
    """Whether a file can hold the text: JSON can name halves of characters, which tokenizers and files refuse."""
    return _HALF.search(text) is None


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"{counts.most_common(1)[0][0][:60]!r} stands twice in an object")
    return values
