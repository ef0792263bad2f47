"""Checksums of the trainer's checkpoints, written last: training resumes only from a checkpoint that matches."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from reft_math.commands.processes import process_state
from reft_math.errors import UserError
from reft_math.files.atomic import SUFFIX, remove_folder, sync, write_json
from reft_math.files.strict import read_object

CHECKSUMS_NAME = "checksums.json"
_KEPT = 2


class Checksums(TrainerCallback):
    """Writes a checkpoint's checksums when every process has written its part of it, then deletes older checkpoints.

    It replaces the trainer's ``save_total_limit``, which deletes first: a run killed in between would lose a whole
    checkpoint, or the best one, for a new one that is not complete yet.
    """

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        process_state().wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir))
            write_checksums(folder / f"checkpoint-{state.global_step}")
            delete_older(folder, state.best_global_step)


class BestCheckpoint(TrainerCallback):
    """Points a resumed run to its best checkpoint in the present folder: the state holds the former path."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.best_global_step:
            best = Path(str(args.output_dir)) / f"checkpoint-{state.best_global_step}"
            if not best.is_dir():
                raise UserError(f"the run's best checkpoint is gone, {best}; start anew with --overwrite")
            state.best_model_checkpoint = str(best)


def delete_older(folder: Path, best_step: int | None) -> None:
    """Deletes all checkpoints but the newest two and the best."""
    for path in _newest_first(folder)[_KEPT:]:
        if path.name != f"checkpoint-{best_step}":
            remove_folder(path)


def write_checksums(checkpoint: Path) -> None:
    """Lists the checkpoint's files by size and SHA-256, after all of them are on the disk."""
    others = {CHECKSUMS_NAME, CHECKSUMS_NAME + SUFFIX}
    paths = sorted(path for path in checkpoint.rglob("*") if path.name not in others)
    for path in paths:
        sync(path)
    files = [path for path in paths if path.is_file()]
    write_json(checkpoint / CHECKSUMS_NAME, {str(path.relative_to(checkpoint)): _seal(path) for path in files})
    sync(checkpoint.parent)


def damage(checkpoint: Path) -> str | None:
    """Returns what is wrong with a checkpoint; None if it is whole."""
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
        if not os.path.isfile(path):  # also false for impossible file names
            return f"{name} is missing"
        if _seal(path) != seal:
            return f"{name} is not as it was written"
    return None


def newest_whole(folder: Path) -> Path | None:
    """Returns the last checkpoint without `damage`."""
    return next((path for path in _newest_first(folder) if damage(path) is None), None)


def last_checkpoint(folder: Path) -> str | None:
    """Returns the checkpoint to resume from, the same in every process. Damaged ones are reported and deleted.

    They would count among those that the trainer keeps, and displace a whole one.
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
    paths = [path for path in folder.glob("checkpoint-*") if _step(path).isdecimal()]  # others are the user's own
    return sorted(paths, key=lambda path: -int(_step(path)))


def _step(checkpoint: Path) -> str:
    return checkpoint.name.removeprefix("checkpoint-")


def _seal(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": os.path.getsize(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
