from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reft_math.training.checkpoints import (
    CHECKSUMS_NAME,
    damage,
    delete_older,
    last_checkpoint,
    newest_whole,
    write_checksums,
)


def make(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "model").mkdir(parents=True)
    (checkpoint / "optimizer.pt").write_bytes(b"moments")
    (checkpoint / "model" / "weights").write_bytes(b"biases")
    write_checksums(checkpoint)
    return checkpoint


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda path: (path / CHECKSUMS_NAME).unlink(), "it has no checksums.json, which is written last"),
        (lambda path: (path / CHECKSUMS_NAME).write_text("{"), "checksums.json cannot be read"),
        (lambda path: (path / CHECKSUMS_NAME).write_text("{}"), "checksums.json names no file"),
        (lambda path: (path / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda path: (path / "optimizer.pt").write_bytes(b"mome"), "optimizer.pt is not as it was written"),
        (
            lambda path: (path / "model" / "weights").write_bytes(b"biaseS"),
            "model/weights is not as it was written",
        ),
    ],
)
def test_the_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    harm: Callable[[Path], Any], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, damaged = make(tmp_path, 9), make(tmp_path, 10)
    assert newest_whole(tmp_path) == damaged
    harm(damaged)
    assert newest_whole(tmp_path) == whole
    assert damage(damaged) == reason
    assert last_checkpoint(tmp_path) == str(whole)
    assert capsys.readouterr().err == f"{damaged} is damaged ({reason}): left out and deleted\n"
    assert not damaged.exists()


def test_the_newest_two_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 8, 10, 12):
        make(tmp_path, step)
    delete_older(tmp_path, best_step=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-12", "checkpoint-4"]
    delete_older(tmp_path, best_step=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-12"]


def test_without_checkpoints_a_run_starts_at_the_start(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "none") is None


def test_checksums_killed_at_any_call_leave_a_whole_checkpoint_or_none(
    tmp_path: Path, killed_at_every_call: Any
) -> None:
    checkpoint = make(tmp_path, 3)
    seals = json.loads((checkpoint / CHECKSUMS_NAME).read_text())
    assert sorted(seals) == ["model/weights", "optimizer.pt"]
    (checkpoint / CHECKSUMS_NAME).unlink()
    for _ in killed_at_every_call(lambda: write_checksums(checkpoint)):
        assert (damage(checkpoint) is None) == (checkpoint / CHECKSUMS_NAME).exists()
        (checkpoint / CHECKSUMS_NAME).unlink(missing_ok=True)
    assert damage(checkpoint) is None


def test_without_power_a_checkpoint_is_whole_or_known_to_be_not(tmp_path: Path, lost_without_power: Any) -> None:
    assert lost_without_power(lambda: make(tmp_path, 3), tmp_path) == []


@pytest.mark.parametrize("content", ["[]", "3", '{"a": 1}', "{"])
def test_a_list_of_checksums_that_is_none_is_a_flaw(tmp_path: Path, content: str) -> None:
    (tmp_path / "a").write_text("whole")
    (tmp_path / CHECKSUMS_NAME).write_text(content)
    assert damage(tmp_path) in (f"{CHECKSUMS_NAME} cannot be read", "a is not as it was written")


def test_a_folder_in_place_of_checksums_is_a_flaw(tmp_path: Path) -> None:
    (tmp_path / CHECKSUMS_NAME).mkdir()
    assert damage(tmp_path) == f"{CHECKSUMS_NAME} cannot be read"


def test_a_copy_that_somebody_keeps_is_no_checkpoint(tmp_path: Path) -> None:
    whole = make(tmp_path, 3)
    shutil.copytree(whole, tmp_path / "checkpoint-9-good")
    assert last_checkpoint(tmp_path) == str(whole)
    assert (tmp_path / "checkpoint-9-good").is_dir()


def test_a_name_in_the_checksums_that_no_file_can_have_is_a_flaw(tmp_path: Path) -> None:
    name = "a" * 5000
    (tmp_path / CHECKSUMS_NAME).write_text(json.dumps({name: 1}))
    assert damage(tmp_path) == f"{name} is missing"
