"""Damages files: flips, cuts, doubles and inserts bytes; exchanges, deletes and doubles values of JSON."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 3, 1.5, 10**6, 2**31, 10**30, -(2**70), 1e308, float("nan"), float("inf")),
    *([], {}, [None], {"a": 1}, [1, 2], "9" * 5000),
    *("", "a", "a" * 3000, "a\nb\x1b[2J", "../../secret", "/etc/passwd", "<class 'os.system'>"),
    *("{layer}", "kl:1", "tokens:99999999999999999999", "0-99999999999", "1_000", "1e999999999", "-1e99999"),
)
ODD_BYTES = (
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\r", b"\n", b"\t", b"\x85", b"\x1f\x8b", b"\x1b[2J"),
    *(b'"', b"{", b"}", b"[", b"]", b",", b":", b"NaN", b"null", b"{{", b"{%", b"&a [*a]", b"9" * 5000),
)


@contextlib.contextmanager
def damage(path: Path, rng: random.Random) -> Iterator[None]:
    """Changes a file's content, or sometimes replaces the file by something else, and restores it afterwards."""
    content = path.read_bytes()
    path.unlink()
    if rng.random() < 0.97:
        path.write_bytes(damaged(content, rng))
    else:
        rng.choice((path.mkdir, partial(path.symlink_to, "nowhere"), lambda: None))()
    try:
        yield
    finally:
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(content)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Damages JSON mostly by its values, everything else by its bytes."""
    if rng.random() < 0.6:
        with contextlib.suppress(ValueError):
            return json.dumps(_other_values(json.loads(content), rng)).encode()
        with contextlib.suppress(ValueError):  # a line of several, or the header of a safetensors file
            start, end = _json_within(content, rng)
            text = json.dumps(_other_values(json.loads(content[start:end]), rng)).encode()
            size = len(text).to_bytes(8, "little") if start == 8 else content[:start]
            return size + text + content[end:]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        content = _other_bytes(content, rng)
    return content


def _json_within(content: bytes, rng: random.Random) -> tuple[int, int]:
    header = int.from_bytes(content[:8], "little")
    if 0 < header < len(content):
        return 8, 8 + header
    start = content.rfind(b"\n", 0, rng.randrange(len(content) + 1)) + 1
    return start, (content + b"\n").find(b"\n", start)


def _other_bytes(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    end = min(len(content), start + rng.choice((1, 1, 2, 8, 64, len(content))))
    before, between, after = content[:start], content[start:end], content[end:]
    return rng.choice(
        (
            before,
            before + after,
            before + rng.choice(ODD_BYTES) + between + after,
            before + rng.choice(ODD_BYTES) + after,
            before + bytes(byte ^ (1 << rng.randrange(8)) for byte in between[:1]) + between[1:] + after,
            before + between + between + after,
            before + rng.randbytes(4) + after,
        )
    )


def _other_values(value: Any, rng: random.Random) -> Any:
    """``value``, changed in place where it is a container."""
    places = list(_places(value))
    if not places:
        return rng.choice(ODD_VALUES)
    for _ in range(rng.choice((1, 1, 1, 2))):
        container, key = rng.choice(places)
        if key not in (container if isinstance(container, dict) else range(len(container))):
            continue
        way = rng.random()
        if way < 0.1:
            del container[key]
        elif way < 0.2 and isinstance(container, dict):
            container[rng.choice(("extra", "../x", ""))] = rng.choice(ODD_VALUES)
        elif way < 0.3:
            other, place = rng.choice(places)
            with contextlib.suppress(LookupError):
                container[key] = json.loads(json.dumps(other[place]))
        else:
            container[key] = rng.choice(ODD_VALUES)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])
