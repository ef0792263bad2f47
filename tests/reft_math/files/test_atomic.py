"""Every writer, killed at and refused every file-system call it makes: what is read is the old or the new, whole."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from reft_math.files.atomic import (
    atomic_path,
    is_used,
    remove_folder,
    storage_fault,
    write_csv,
    write_files,
    write_folder,
    write_json,
)
from reft_math.files.plots import write_figure


class Figure:
    def savefig(self, path: Path, format: str, **_: object) -> None:
        path.write_text(f"new {format}")


def write_model(folder: Path) -> None:
    (folder / "templates").mkdir()
    for name in ("config", "weights", "templates/chat"):
        (folder / name).write_text("new")


def read_tree(folder: Path) -> dict[str, str]:
    """All but what is left aside, which nothing reads."""
    paths = [path for path in folder.rglob("*") if path.is_file() and ".tmp" not in str(path.relative_to(folder))]
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


OLD = {"run/config": "old", "run/other": "mine"}
NEW = {"run/config": "new", "run/weights": "new", "run/templates/chat": "new"}
Case = tuple[dict[str, str], Callable[[Path], object], dict[str, str]]  # what is there, the work, what is there then
BY_FILE: dict[str, Case] = {
    "file": (OLD, lambda here: write_json(here / "run" / "config", "new"), {**OLD, "run/config": '"new"\n'}),
    "new file": (OLD, lambda here: write_csv(here / "y", [{"a": 1}]), {**OLD, "y": "a\n1\n"}),
    "figures": (
        {"it.png": "old png", "it.svg": "old svg"},
        lambda here: write_figure(here, "it", Figure()),  # type: ignore[arg-type]
        {"it.png": "new png", "it.svg": "new svg"},
    ),
    "files, a folder": (
        {},
        lambda here: write_files(here / "a" / "run", write_model),
        {f"a/{path}": text for path, text in NEW.items()},
    ),
    "files": (OLD, lambda here: write_files(here / "run", write_model), {**OLD, **NEW}),
}
AT_ONCE: dict[str, Case] = {
    "folder": ({}, lambda here: write_folder(here / "run", write_model), NEW),
    "removal": (OLD, lambda here: remove_folder(here / "run"), {}),
}


@pytest.mark.parametrize("faults", ["killed_at_every_call", "failing_at_every_call"])
@pytest.mark.parametrize("name", [*BY_FILE, *AT_ONCE])
def test_whatever_call_a_write_stops_at_nothing_is_half_there_and_the_next_is_whole(
    name: str, faults: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    before, work, after = {**BY_FILE, **AT_ONCE}[name]
    here = tmp_path / "here"

    def reset() -> None:
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        for path, text in before.items():
            (here / path).parent.mkdir(exist_ok=True)
            (here / path).write_text(text)

    reset()
    errors = []
    for error in request.getfixturevalue(faults)(lambda: work(here)):
        errors.append(error)
        found = read_tree(here)
        if name in AT_ONCE:
            assert found in (before, after)
        else:
            assert all(found.get(path) in (before.get(path), after.get(path)) for path in {*before, *after, *found})
        if found != after:
            work(here)
        assert read_tree(here) == after
        reset()
    assert len(errors) >= 5
    assert read_tree(here) == after
    assert all(storage_fault(error) for error in errors if error)


@pytest.mark.parametrize("name", [*BY_FILE, *AT_ONCE])
def test_without_power_nothing_is_lost_that_was_said_to_be_written(
    name: str, tmp_path: Path, lost_without_power: Callable[[Callable[[], object], Path], list[str]]
) -> None:
    before, work, _ = {**BY_FILE, **AT_ONCE}[name]
    for path, text in before.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    assert lost_without_power(lambda: work(tmp_path), tmp_path) == []


def test_a_value_that_cannot_be_written_leaves_the_old_file_and_nothing_aside(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"text": "é"})
    with pytest.raises(TypeError):
        write_json(path, object())

    def stopped() -> None:
        with atomic_path(path) as aside:
            aside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert os.listdir(tmp_path) == ["results.json"]
    assert json.loads(path.read_text()) == {"text": "é"}


def test_a_folder_with_leftovers_only_is_not_in_use(tmp_path: Path) -> None:
    assert not is_used(tmp_path / "none")
    (tmp_path / "run_config.json.tmp").write_text("{")
    assert not is_used(tmp_path)
    (tmp_path / "run_config.json").write_text("{}")
    assert is_used(tmp_path)


def full_disk_errors(folder: Path) -> dict[str, Callable[[], object]]:
    """What writes of libraries raise where files may have 1 kB and no more."""
    tensors = {"weight": torch.zeros(10_000)}

    return {
        "text": lambda: write_json(folder / "it.json", "0" * 100_000),
        "safetensors": lambda: safetensors.torch.save_file(tensors, folder / "it.safetensors"),
    }


@pytest.mark.parametrize("writer", ["text", "safetensors"])
def test_a_full_disk_is_told_from_other_errors_whoever_writes(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource: Any = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(Exception) as caught:  # noqa: PT011 — a class of each library's own
            full_disk_errors(tmp_path)[writer]()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    fault = storage_fault(caught.value)
    assert fault is not None
    assert "\n" not in fault


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "no such file", "x"), ValueError("(os error 2)")])
def test_other_errors_are_no_fault_of_the_disk(error: Exception) -> None:
    assert storage_fault(error) is None


def test_the_same_figure_is_the_same_files(tmp_path: Path) -> None:
    """Clip paths are what matplotlib names at random."""
    from matplotlib.figure import Figure

    for name in ("first", "second"):
        figure = Figure()
        figure.add_subplot().plot([1, 2], [3, 4])
        (tmp_path / name).mkdir()
        write_figure(tmp_path / name, "it", figure)
    for ending in ("png", "svg"):
        assert (tmp_path / "first" / f"it.{ending}").read_bytes() == (tmp_path / "second" / f"it.{ending}").read_bytes()
    assert b"clip-path" in (svg := (tmp_path / "first" / "it.svg").read_bytes())
    assert b"dc:date" not in svg
