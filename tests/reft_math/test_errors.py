from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from reft_math.errors import UserError, require_there


def test_a_mistake_is_one_line_that_cannot_write_to_the_terminal_whatever_came() -> None:
    message = str(UserError("got é\n\x1b[2Jb\ud800\u2028\t"))
    assert message == r"got é\n\x1b[2Jb\ud800\u2028\t"


def test_a_long_message_keeps_the_rule_and_the_way_out() -> None:
    message = str(UserError(f"rows must be finite; got {'r/1, ' * 10**6}: take others"))
    assert len(message) == 2000
    assert message.startswith("rows must be finite; got r/1, ")
    assert message.endswith("r/1, : take others")
    assert str(UserError("a" * 2000)) == "a" * 2000


@pytest.mark.parametrize(
    ("value", "is_refused"),
    [
        ("gpt2", False),
        ("org/model", False),
        ("org/model/q4.gguf", False),
        ("here/model", False),
        ("results/run/adapter", True),
        ("./model", True),
        ("own.jsonl", True),
        (["org/model", "/nowhere"], True),
        (None, False),
    ],
)
def test_a_path_that_leads_nowhere_is_told_from_a_hub_id(
    value: object, is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()  # a folder of that name makes no path of a hub id
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--data-set names a path") if is_refused else nullcontext():
        require_there(SimpleNamespace(data_set=value), "data_set", "not_an_option")
