"""Claims a run's output folder: one run writes to it, only that run resumes it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reft_math.errors import UserError
from reft_math.files.atomic import is_used, make_folder, remove_folder, why_not_writable, write_json
from reft_math.files.lock import hold
from reft_math.files.strict import read_object

RUN_CONFIG = "run_config.json"
RESULTS_NAME = "results.json"


def claim_output_dir(config: Any, fingerprints: Mapping[str, Any] | None = None) -> Path:
    """Claims the output folder for the run and writes its resolved settings there.

    Args:
        config: The settings.
        fingerprints: Fingerprints of the rows that the run reads, by split, and of an adapter's parameters.

    Raises:
        UserError: The folder is in use and neither ``resume`` nor ``overwrite`` is given, or ``resume`` is given with
            other settings than the folder's, or other rows.
    """
    check_claim(config, fingerprints)
    folder = Path(config.output_dir)
    if config.overwrite and is_used(folder):
        remove_folder(folder)
    try:
        make_folder(folder)
    except OSError as error:
        raise UserError(f"--output-dir must be a folder that can be made; {folder}: {error.strerror}") from None
    _hold(folder)
    about = {} if fingerprints is None else {ROWS: fingerprints}
    write_json(folder / RUN_CONFIG, {**_settings(config), **about})
    return folder


def check_claim(config: Any, fingerprints: Mapping[str, Any] | None = None) -> None:
    """Raises `UserError` if `claim_output_dir` would, apart from disk errors. Writes nothing."""
    check_output_dir(config)
    folder = Path(config.output_dir)
    if config.resume and is_used(folder):
        _check_same_settings(folder, config, fingerprints)


def check_output_dir(config: Any) -> None:
    """Raises `UserError` if `claim_output_dir` would whatever the settings resolve to.

    Writes nothing, but locks an existing folder for this run.
    """
    folder = Path(config.output_dir)
    if config.overwrite and config.resume:
        raise UserError("--resume and --overwrite exclude each other; got both")
    if reason := why_not_writable(folder):
        raise UserError(f"--output-dir must be a folder that can be written to; {reason}: choose another")
    if folder.is_dir():
        _hold(folder)
    in_use = is_used(folder)
    if in_use and not (config.resume or config.overwrite):
        raise UserError(
            f"output folder {folder} is in use; pass --resume to go on, --overwrite to start anew,"
            " or another --output-dir"
        )
    if in_use and config.overwrite:
        _check_is_run(folder, config)


def _hold(folder: Path) -> None:
    if not hold(folder):
        raise UserError(
            f"--output-dir must be no other run's; a process that is still at work holds {folder}: wait for its end,"
            " end it, or choose another"
        )


def check_output_file(path: Path) -> None:
    """Raises `UserError` if ``--output`` cannot be written as a file. Writes nothing."""
    if path.is_dir():
        raise UserError(f"--output must be a file; {path} is a folder")
    if reason := why_not_writable(path.parent):
        raise UserError(f"--output must be a file in a folder that can be written to; {reason}")


ROWS = "fingerprints"  # key among the settings


# Settings for where results go and how a run resumes, and others that cannot change a result.
_FREE_ON_RESUME = {
    *("output_dir", "resume", "overwrite", "dry_run"),
    *("save_steps", "report_to"),
}


def _settings(config: Any) -> dict[str, Any]:
    """Returns the settings that identify a run, with the command."""
    free = _FREE_ON_RESUME | getattr(config, "FREE_ON_RESUME", frozenset())
    values = {name: value for name, value in dataclasses.asdict(config).items() if name not in free}
    return {"command": type(config).__name__, **json.loads(json.dumps(values))}


def _read_settings(folder: Path) -> dict[str, Any] | None:
    """Returns the settings of the run in a folder; None if the folder holds no run."""
    try:
        return read_object(folder / RUN_CONFIG)
    except (OSError, ValueError):
        return None


def _check_is_run(folder: Path, config: Any) -> None:
    """Lets ``--overwrite`` delete only what the same command wrote."""
    if os.path.ismount(folder) or Path.cwd().is_relative_to(folder.resolve()):
        raise UserError(
            f"--overwrite deletes the output folder and makes it anew; {folder} is a mount point or holds the working"
            " folder: choose one within it"
        )
    before, command = _read_settings(folder), _settings(config)["command"]
    if folder.is_symlink() or before is None or before.get("command") != command:
        raise UserError(
            f"--overwrite deletes a run of the same command only; {folder} holds no {RUN_CONFIG} of one:"
            " choose another --output-dir"
        )


def _check_same_settings(folder: Path, config: Any, fingerprints: Mapping[str, Any] | None) -> None:
    before, now = _read_settings(folder), _settings(config)
    if before is None:
        raise UserError(
            f"--resume goes on with a run; {folder} holds no readable {RUN_CONFIG}: choose another --output-dir"
        )
    rows = before.pop(ROWS, None)
    for name in (*now, *before):  # in declared order: given settings before those derived from them
        if now.get(name) != before.get(name):
            raise UserError(
                f"--resume needs the run's own settings; {name} was {before.get(name)!r} and is {now.get(name)!r}:"
                " repeat it, or choose another --output-dir"
            )
    if isinstance(rows, dict) and fingerprints is not None and rows != fingerprints:
        changed = [name for name in fingerprints if rows.get(name) != fingerprints[name]]
        raise UserError(
            f"--resume goes on with the rows and parameters that the run began with; those of {', '.join(changed)} have"
            " changed since: put them back, or choose another --output-dir"
        )
