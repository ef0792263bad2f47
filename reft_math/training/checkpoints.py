"""Checksums of the trainer's checkpoints, written last: training resumes only from one that agrees with them."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from reft_math.commands.processes import process_state
from reft_math.files.atomic import SUFFIX, remove_folder, sync, write_json
from reft_math.files.strict import read_object

CHECKSUMS_NAME = "checksums.json"
_KEPT = 2


class Checksums(TrainerCallback):
    """Writes a checkpoint's checksums when every process has written its part of it, then deletes older checkpoints.

    In place of the trainer's ``save_total_limit``, which deletes them before: a run killed in between would have lost a
    whole checkpoint, or the best one, to a new one that does not count yet.
    """

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        process_state().wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir))
            write_checksums(folder / f"checkpoint-{state.global_step}")
            delete_older(folder, state.best_global_step)


def delete_older(folder: Path, best_step: int | None) -> None:
    """Deletes all checkpoints but the newest two and the best."""
    for path in _newest_first(folder)[_KEPT:]:
        if path.name != f"checkpoint-{best_step}":
            remove_folder(path)


def write_checksums(checkpoint: Path) -> None:
    """Lists the checkpoint's files by size and SHA-256, all of them on the disk before the list is."""
    others = {CHECKSUMS_NAME, CHECKSUMS_NAME + SUFFIX}
    paths = sorted(path for path in checkpoint.rglob("*") if path.name not in others)
    for path in paths:
        sync(path)
    files = [path for path in paths if path.is_file()]
    write_json(checkpoint / CHECKSUMS_NAME, {str(path.relative_to(checkpoint)): _seal(path) for path in files})
    sync(checkpoint.parent)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None with a whole one."""
    try:
        seals = read_object(checkpoint / CHECKSUMS_NAME)
    except FileNotFoundError:
        return f"it has no {CHECKSUMS_NAME}, which is written last"
    except (OSError, ValueError):
        return f"{CHECKSUMS_NAME} cannot be read"
    if not seals:
        return f"{CHECKSUMS_NAME} names no file"
    for name, seal in seals.items():
        path = checkpoint / name
        if not os.path.isfile(path):  # false of a name that no file can have, too
            return f"{name} is missing"
        if _seal(path) != seal:
            return f"{name} is not as it was written"
    return None


def newest_whole(folder: Path) -> Path | None:
    """The last checkpoint without a `damage`."""
    return next((path for path in _newest_first(folder) if damage(path) is None), None)


def last_checkpoint(folder: Path) -> str | None:
    """The checkpoint to go on from, the same in every process. Damaged ones are deleted, with a line for each.

    They would count among those that the trainer keeps, and push out a whole one.
    """
    state = process_state()
    found: list[str | None] = [None]
    if state.is_main_process:
        for path in _newest_first(folder):
            if reason := damage(path):
                print(f"{path} is damaged ({reason}): left out and deleted", file=sys.stderr)
                remove_folder(path)
        newest = newest_whole(folder)
        found = [None if newest is None else str(newest)]
    last: str | None = broadcast_object_list(found)[0]
    return last


def _newest_first(folder: Path) -> list[Path]:
    paths = [path for path in folder.glob("checkpoint-*") if _step(path).isdecimal()]  # others are somebody's own
    return sorted(paths, key=lambda path: -int(_step(path)))


def _step(checkpoint: Path) -> str:
    return checkpoint.name.removeprefix("checkpoint-")


def _seal(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": os.path.getsize(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
