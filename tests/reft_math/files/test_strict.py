from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from reft_math.errors import UserError
from reft_math.files.strict import from_json, is_whole, parse_json, read_object


@dataclass(frozen=True)
class Settings:
    name: Literal["a", "b"]
    count: int | None
    share: float
    is_on: bool
    layers: str | tuple[int, ...]
    bounds: tuple[float, float] | None
    versions: dict[str, str]


GOOD: dict[str, Any] = {
    "name": "a",
    "count": 3,
    "share": 1,
    "is_on": False,
    "layers": [0, 2],
    "bounds": [0, 1.5],
    "versions": {"torch": "2"},
}


@pytest.mark.parametrize(
    "changes", [{}, {"count": None, "layers": "all", "bounds": None, "share": 0.5}, {"layers": []}]
)
def test_what_json_made_of_a_dataclass_becomes_it_again(changes: dict[str, Any]) -> None:
    values = {**GOOD, **changes}
    settings = from_json(Settings, values)
    assert asdict(settings) == {name: tuple(it) if isinstance(it, list) else it for name, it in values.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "c"}, "name must be 'a' or 'b'; got 'c'"),
        ({"name": ["a"]}, r"name must be 'a' or 'b'; got \['a'\]"),
        ({"count": 1.0}, "count must be int or null; got 1.0"),
        ({"count": True}, "count must be int or null; got True"),
        ({"count": "3"}, "count must be int or null; got '3'"),
        ({"share": "1"}, "share must be float; got '1'"),
        ({"share": None}, "share must be float; got None"),
        ({"share": float("nan")}, "share must be float; got nan"),
        ({"share": float("inf")}, "share must be float; got inf"),
        ({"share": 10**400}, "share must be float; got 1000"),
        ({"share": True}, "share must be float; got True"),
        ({"is_on": 1}, "is_on must be bool; got 1"),
        ({"layers": [0, "1"]}, r"layers must be str or tuple\[int, \.\.\.\]; got \[0, '1'\]"),
        ({"layers": [True]}, r"layers must be .* got \[True\]"),
        ({"layers": {"0": 1}}, "layers must be"),
        ({"bounds": [1]}, r"bounds must be tuple\[float, float\] or null; got \[1\]"),
        ({"bounds": [1, 2, 3]}, "bounds must be"),
        ({"bounds": [1, None]}, "bounds must be"),
        ({"versions": {"torch": 2}}, r"versions must be dict\[str, str\]; got \{'torch': 2\}"),
        ({"versions": []}, r"versions must be dict\[str, str\]; got \[\]"),
        ({"colour": "red"}, "its fields are name, count, .* versions; unknown: colour"),
        ({"name": "b" * 10**6}, "got 'b{199}$"),
    ],
)
def test_a_value_of_another_type_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_json(Settings, {**GOOD, **changes})


def test_a_missing_field_is_named() -> None:
    with pytest.raises(UserError, match=r"missing: count, share$"):
        from_json(Settings, {name: value for name, value in GOOD.items() if name not in ("count", "share")})


@pytest.mark.parametrize(
    "value", [{"a": {"b": 1}, "c": [{"b": 1}, {"b": 2}]}, {"a": "\U0001f600 ü \u2028 \x00"}, [], "12", 10**300, None]
)
def test_plain_json_is_read_as_python_reads_it(value: object) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False).encode(), b"\xef\xbb\xbf" + b" [1]"):
        assert parse_json(text) == (json.loads(text) if isinstance(text, str) else json.loads(text.decode("utf-8-sig")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1" * 5000, "4300 digits"),
        (b'{"a": "\xff"}', "can't decode byte 0xff"),
        ("{", "Expecting property name"),
        (b"\x1f\x8b\x08", "can't decode byte 0x8b"),
        ('{"a": "\x00"}', "Invalid control character"),
    ],
)
def test_what_is_no_json_is_a_value_error_of_one_line(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(text)
    assert "\n" not in str(caught.value)


def test_a_file_holds_an_object(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    assert read_object(path) == {"a": 1}
    path.write_text("[1]")
    with pytest.raises(ValueError, match="must hold a JSON object; it holds list"):
        read_object(path)


def test_halves_of_characters_are_told_from_whole_ones() -> None:
    assert is_whole("a\0é\u2028\ud7ff\ue000\U0001f600")
    assert not is_whole(parse_json('"a\\ud83d"'))
    assert is_whole(parse_json('"\\ud83d\\ude00"'))
