from __future__ import annotations

import json
from pathlib import Path

import pytest

from interventions import PrefixReftConfig
from reft_math.errors import UserError


def test_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    config = PrefixReftConfig(
        "loreft", "block", (0, 2), "generated", 4, 32, 10, 0.54, "tokens:10", "m", "abc", "chat/1"
    )
    config.save_pretrained(tmp_path)
    assert PrefixReftConfig.from_pretrained(tmp_path) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"colour": "red"},
            r"reft_config.json is not a readable adapter config \(its fields are .*; unknown: colour\)",
        ),
        ({"site": None}, "site must be str; got None"),
        ({"rank": "4"}, "rank must be int or null; got '4'"),
        ({"layers": [0, 1.0]}, r"layers must be .*; got \[0, 1.0\]"),
        ({"target_norm": float("nan")}, "target_norm must be float or null; got nan"),
        ({"versions": {"torch": None}}, "versions must be"),
        ({"gate": "always\x1b[2J"}, r"got 'always\\x1b\[2J'"),
        ({"rank": 2}, "rank is LoReFT's and DiReFT's"),
    ],
)
def test_a_file_is_taken_as_a_whole_or_not_at_all(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    """What an unknown field asks for would not be done, and a missing one's default need not be what it was."""
    PrefixReftConfig().save_pretrained(tmp_path)
    path = tmp_path / "reft_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError, match=message):
        PrefixReftConfig.from_pretrained(tmp_path)


def test_every_field_has_to_be_there(tmp_path: Path) -> None:
    (tmp_path / "reft_config.json").write_text('{"intervention": "red"}')
    with pytest.raises(UserError, match="missing: act_fn, base_model, base_revision, dropout, gate, k, layers"):
        PrefixReftConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"intervention": "lora"}, "intervention must be one of red, bias, loreft, direft; got 'lora'"),
        ({"positions": "last"}, "positions must be one of all, solution, generated, prompt; got 'last'"),
        ({"rank": 2}, "rank is LoReFT's and DiReFT's"),
        ({"intervention": "bias", "rank": 4}, "got 4 for bias"),
        ({"intervention": "bias", "dropout": 0.5}, "act_fn and dropout are .*; got None and 0.5 for bias"),
        ({"intervention": "loreft", "rank": 0}, "at least 1; got 0"),
        ({"act_fn": "relu"}, "act_fn and dropout are LoReFT's and DiReFT's; got 'relu'"),
        ({"dropout": 0.1}, "act_fn and dropout are LoReFT's and DiReFT's; got None and 0.1 for red"),
        ({"intervention": "loreft", "act_fn": "step"}, "activations without parameters, such as relu; got 'step'"),
        ({"intervention": "loreft", "act_fn": "prelu"}, "without parameters.*got 'prelu'"),
        ({"intervention": "loreft", "act_fn": "xielu"}, "without parameters.*got 'xielu'"),
        ({"positions": "generated", "gate": "prompt"}, "gate prompt is for adapters that act on the prompt"),
        ({"intervention": "direft", "dropout": 1.0}, r"in \[0, 1\); got 1.0"),
        ({"width": 0}, "width must be at least 1; got 0"),
        ({"k": -1}, "k must be at least 1; got -1"),
        ({"target_norm": -0.5}, "target_norm must be 0 or more, and finite; got -0.5"),
        ({"target_norm": float("inf")}, "target_norm must be 0 or more, and finite; got inf"),
    ],
)
def test_values_that_mean_nothing_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PrefixReftConfig(**values)  # type: ignore[arg-type]


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "reft_config.json").write_text("{")
    with pytest.raises(UserError, match="not a readable adapter config"):
        PrefixReftConfig.from_pretrained(tmp_path)


def test_another_base_is_named_and_the_same_by_another_path_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    config = PrefixReftConfig(base_model=str(tmp_path / "base"), base_revision="abc")
    assert config.resolve_base(None, None) == (str(tmp_path / "base"), "abc")
    assert config.resolve_base("base", None) == ("base", None)
    assert not recwarn
    with pytest.warns(UserWarning, match="and is put on other"):
        assert config.resolve_base("other", "main") == ("other", "main")
