from __future__ import annotations

import json
from pathlib import Path

import pytest

from reft_math.files.strict import is_whole, parse_json, read_object


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
