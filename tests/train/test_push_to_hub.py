"""The command in this process, against a hub on loopback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fake_hub import FakeHub
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from interventions import PrefixReftConfig, PrefixReftModel, get_prefix_reft_model
from reft_math.models import load_model

SMALL = "--train-size 16 --eval-size 4 --epochs 1 --calibration-size 2 --max-new-tokens 4"
TOKENS = torch.arange(3, 11)[None]


def test_what_training_left_is_pushed_with_its_results_and_without_its_paths(
    call: Callable[[str], None], hub: FakeHub, tmp_path: Path, tiny_base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    call(f"train/prefix_reft.py --model {tiny_base} {SMALL} --output-dir {run}")
    assert "| prefix |" in (run / "adapter" / "README.md").read_text()
    (run / "adapter" / "README.md").unlink()  # as versions before this one left it
    (run / "adapter" / "run_config.json").write_text("{}")  # as in an import's folder
    capsys.readouterr()
    call(f"train/push_to_hub.py --adapter {run}/adapter --repo-id user/adapter --private --license mit")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"pushed: {hub.endpoint}/user/adapter/commit/")
    assert printed[1].endswith(f"its path stands in the config file: {tiny_base}")
    assert len(printed) == 2
    assert hub.repositories["user/adapter"].private
    files = hub.files("user/adapter")
    assert {"README.md", "reft_config.json", "reft_model.safetensors", "config.json"} <= files.keys()
    assert "run_config.json" not in files
    card = ModelCard(files["README.md"].decode())
    assert "| prefix |" in card.text
    assert tiny_base not in str(card)
    assert card.data.license == "mit"
    logits = [
        PrefixReftModel.from_pretrained(source, load_model(tiny_base))(TOKENS).logits
        for source in ("user/adapter", run / "adapter")
    ]
    assert torch.equal(*logits)
    (tmp_path / "sent").write_bytes(files["reft_model.safetensors"])
    assert load_file(tmp_path / "sent").keys() == load_file(run / "adapter" / "reft_model.safetensors").keys()

    call(f"train/push_to_hub.py --adapter {run}/adapter --repo-id user/adapter --create-pr")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"pushed: {hub.endpoint}/user/adapter/discussions/1"
    assert printed[2].startswith("the card names no license unless it did before")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--repo-id user/name", "--adapter must be the folder of an adapter or a regressor; got None"),
        ("--adapter {folder}/gone --repo-id user/name", "--adapter must be the folder of"),
        ("--adapter {folder} --repo-id user/name", "holds no reft_config.json; did you mean {folder}/adapter?"),
        ("--adapter {folder}/adapter", "--repo-id must be a repository's name, user/name; got None"),
        ("--adapter {folder}/adapter --repo-id user/name", "log in with hf auth login"),
    ],
)
def test_a_mistake_is_one_line(
    call: Callable[[str], None],
    hub: FakeHub,
    tmp_path: Path,
    tiny_base: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    get_prefix_reft_model(load_model(tiny_base), PrefixReftConfig()).save_pretrained(tmp_path / "adapter")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(SystemExit):
        call(f"train/push_to_hub.py {arguments.format(folder=tmp_path)}")
    errors = capsys.readouterr().err.splitlines()
    assert [line for line in errors if message.format(folder=tmp_path) in line and line.startswith("error: ")]
    assert not hub.repositories


def test_nothing_from_outside_of_the_folder_is_uploaded(
    call: Callable[[str], None], hub: FakeHub, tmp_path: Path, tiny_base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder from elsewhere may hold a link to a key of one's own."""
    get_prefix_reft_model(load_model(tiny_base), PrefixReftConfig()).save_pretrained(tmp_path / "adapter")
    (tmp_path / "secret").write_text("key")
    (tmp_path / "adapter" / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(SystemExit):
        call(f"train/push_to_hub.py --adapter {tmp_path}/adapter --repo-id user/name")
    assert f"notes.txt is a link to {tmp_path}/secret" in capsys.readouterr().err
    assert not hub.repositories
