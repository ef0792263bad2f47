"""Writes files whole or not at all: to a temporary file in the same folder, synced to the disk, then renamed.

A killed process or a full disk leaves the earlier file unchanged. Temporary files left behind end in `SUFFIX`, are
never read, and are replaced by the next write.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass

SUFFIX = ".tmp"
_FAULTS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),  # full or broken
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG),  # not writable
)
_FULL = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``. The file written there is synced and renamed to ``path`` at the end, or
    deleted after an exception.

    Raises:
        OSError: A step failed; it names a file, and ``path`` is unchanged.
    """
    aside = _aside(path)
    try:
        with named(path):
            yield aside
            sync(aside)
            os.replace(aside, path)
            sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Adds this file's name to an `OSError` without one, such as from a write to a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def make_folder(folder: Path) -> None:
    """Creates a folder and its missing parents; returns when all of their names are on the disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows under the first row's names."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_files(folder: Path, save: Callable[[Path], object]) -> None:
    """Moves the files that ``save`` writes, also in subfolders, into a folder, each of them whole; other files stay."""
    make_folder(folder)
    with _folder_aside(folder / "files") as aside:
        save(aside)
        for path in sorted(path for path in aside.rglob("*") if path.is_file()):
            place = folder / path.relative_to(aside)
            sync(path)
            make_folder(place.parent)
            os.replace(path, place)
            sync(place.parent)


def write_folder(folder: Path, save: Callable[[Path], object]) -> None:
    """Creates a folder with the files that ``save`` writes, whole or not at all: if it exists, it is complete."""
    with _folder_aside(folder) as aside:
        save(aside)
        for path in aside.rglob("*"):
            sync(path)
        sync(aside)
        os.rename(aside, folder)
        sync(folder.parent)


def remove_folder(folder: Path) -> None:
    """Deletes a folder in one step: renames it, then deletes it under a name that nothing reads."""
    with _folder_aside(folder) as aside:
        os.rename(folder, aside)
        sync(folder.parent)


def is_used(folder: Path) -> bool:
    """Returns whether a folder holds more than temporary files of a stopped process."""
    return folder.is_dir() and any(path.suffix != SUFFIX for path in folder.iterdir())


def why_not_writable(folder: Path) -> str | None:
    """Returns why a folder cannot be created or written to, as far as can be told without trying; None if it can.

    Its nearest existing parent must be a writable folder. Root may write anywhere except on a read-only file system.
    """
    nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not nearest.is_dir():
        return f"{nearest} is a file"
    return None if os.access(nearest, os.W_OK | os.X_OK) else f"{nearest} may not be written to"


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def storage_fault(error: Exception) -> str | None:
    """Returns the disk's reason for a failed write if the error is one; else None."""
    if isinstance(error, OSError) and error.errno in _FAULTS:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return next((fault for fault in _FULL if fault in str(error)), None)  # safetensors raises its own class


def _aside(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


@contextmanager
def _folder_aside(folder: Path) -> Iterator[Path]:
    """Yields a new folder beside ``folder`` and deletes it when the work is done or has failed."""
    aside = _aside(folder)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)
