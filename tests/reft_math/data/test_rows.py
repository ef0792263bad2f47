from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from reft_math.data.rows import HubDataset, Row, file_rows, hub_rows
from reft_math.errors import UserError

HUB = HubDataset("openai/gsm8k", {"test": "test"}, config="main")


def row(**fields: Any) -> Row:
    return Row("data/train.jsonl, line 17", 16, fields)


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def message_of(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        file_rows(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_lines_keep_their_number_and_blank_lines_count_for_no_row(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '\ufeff{"q": "é"}\r\n\n{"q": "line\u2028separator"}\n')
    first, second = file_rows(path)
    assert (first.place, first.index, first.fields) == (f"{path}, line 1", 0, {"q": "é"})
    assert (second.place, second.index, second.fields) == (f"{path}, line 3", 1, {"q": "line\u2028separator"})


def test_a_lists_rows_keep_their_index(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", '[{"q": "a"}, {"q": "b"}]')
    assert [(row.place, row.index) for row in file_rows(path)] == [(f"{path}, row 0", 0), (f"{path}, row 1", 1)]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", "", "at least one row, but is empty"),
        ("a.jsonl", "\n \n", "at least one row, but is empty"),
        ("a.json", "", "at least one row, but is empty"),
        ("a.json", "[]", "at least one row, but is empty"),
        ("a.jsonl", '{"q": 1}\n{"q": 1', "a.jsonl, line 2: must be JSON, got: "),
        ("a.jsonl", '{"q": 1}\n[1]\n', "a.jsonl, line 2: must be a JSON object with named fields, got [1] (list)"),
        ("a.jsonl", b'{"q": 1}\n{"q": "\xff"}\n', "a.jsonl, line 2: must be UTF-8 text, got byte 0xff"),
        ("a.json", b'[{"q": 1},\n{"q": "\xff"}]', "a.json, line 2: must be UTF-8 text, got byte 0xff"),
        ("a.jsonl", b'\xef\xbb\xbf{"q": 1}\n{"q": "\xfe"}\n', "a.jsonl, line 2: must be UTF-8 text, got byte 0xfe"),
        ("a.json", b'\xef\xbb\xbf[{"q": 1},\n{"q": "\xfe"}]', "a.json, line 2: must be UTF-8 text, got byte 0xfe"),
        ("a.json", '{"q": 1}', "must hold a JSON list of rows, got {'q': 1} (dict)"),
        ("a.json", '{"q": 1}\n{"q": 2}', "a.json, line 2: must be JSON, got: Extra data (column 1)"),
        ("a.json", '[{"q": 1}, 2]', "a.json, row 1: must be a JSON object with named fields, got 2 (int)"),
    ],
)
def test_a_malformed_file_is_named_with_the_place(
    tmp_path: Path, name: str, content: str | bytes, expected: str
) -> None:
    assert expected in message_of(written(tmp_path / name, content))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert message_of(tmp_path / "none.jsonl").startswith(f"cannot read {tmp_path}/none.jsonl: No such file")
    (tmp_path / "folder.json").mkdir()
    assert "Is a directory" in message_of(tmp_path / "folder.json")


def test_fields_are_taken_by_type() -> None:
    assert row(question="  Why?\n").text("question") == "Why?"
    assert row(level=3).take("level", int) == 3


@pytest.mark.parametrize(
    ("value", "answer"), [(12, "12"), (145.0, "145"), ("12.0", "12"), (1.5, "1.5"), ("10.05", "10.05"), (" B ", "B")]
)
def test_an_answer_is_short_text(value: str | float, answer: str) -> None:
    assert row(answer=value).answer("answer") == answer


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"answer": 12}, 'data/train.jsonl, line 17: field "answer" must be a string, got 12 (int)'),
        ({"answer": None}, 'data/train.jsonl, line 17: field "answer" must be a string, got None (NoneType)'),
        ({"answer": " "}, 'data/train.jsonl, line 17: field "answer" must not be empty'),
        ({"question": "", "id": 1}, 'data/train.jsonl, line 17: field "answer" is missing; the row has question, id'),
        ({}, 'data/train.jsonl, line 17: field "answer" is missing; the row has no fields'),
    ],
)
def test_a_wrong_field_is_named_with_its_place(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        row(**fields).text("answer")
    assert str(caught.value) == expected


def test_marks_that_some_readers_end_a_line_at_are_read_as_they_are(tmp_path: Path) -> None:
    question = "a\u0085\u2028\0"
    (only,) = file_rows(
        written(tmp_path / "a.jsonl", json.dumps({"q": question}, ensure_ascii=False).replace("\0", "\\u0000"))
    )
    assert only.fields["q"] == question


@pytest.mark.parametrize("value", [True, None, [1], "", float("nan"), float("inf")])
def test_an_answer_is_text_or_a_number(value: Any) -> None:
    with pytest.raises(UserError, match='line 17: field "answer" must'):
        row(answer=value).answer("answer")


@pytest.mark.parametrize("take", [lambda row: row.text("a"), lambda row: row.answer("a")])
def test_half_a_character_is_no_text(take: Callable[[Row], str]) -> None:
    """No tokenizer takes it, and no file."""
    with pytest.raises(UserError, match=r'line 17: field "a" must be text, got .* with half a character'):
        take(row(a="1\ud800"))


def test_a_true_is_no_whole_number() -> None:
    with pytest.raises(UserError, match=r'field "level" must be a whole number, got True \(bool\)'):
        row(level=True).take("level", int)


def test_hub_rows_are_asked_for_by_id_config_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*args: Any, **kwargs: Any) -> datasets.Dataset:
        asked.append((args, kwargs))
        return datasets.Dataset.from_list([{"question": "a"}, {"question": "b"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = hub_rows(HUB, "test")
    assert asked == [(("openai/gsm8k", "main"), {"split": "test"})]
    assert [(row.place, row.fields) for row in rows] == [
        ("openai/gsm8k (test), row 0", {"question": "a"}),
        ("openai/gsm8k (test), row 1", {"question": "b"}),
    ]


@pytest.mark.parametrize(
    "failure",
    [
        ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub (OfflineModeIsEnabled)"),
        datasets.exceptions.DatasetNotFoundError("Dataset 'openai/gsm8k' is a gated dataset on the Hub.\nAsk for it."),
        ValueError("Unknown split \"test\". Should be one of ['train']."),
        RuntimeError(),
    ],
)
def test_a_hub_failure_is_one_line_with_the_ways_out(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    def load_dataset(*args: Any, **kwargs: Any) -> datasets.Dataset:
        raise failure

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError) as caught:
        hub_rows(HUB, "test")
    message = str(caught.value)
    assert "\n" not in message
    assert (str(failure) or "RuntimeError").splitlines()[0].rstrip(".") in message
    assert "openai/gsm8k (test)" in message
    assert "--data-dir" in message
    assert "check the name" in message


def test_the_real_client_offline_fails_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    expected = r"cannot load nobody/nothing \(test\) from the Hugging Face hub: .*[Oo]ffline"
    with pytest.raises(UserError, match=expected):
        hub_rows(HubDataset("nobody/nothing", {"test": "test"}), "test")
