"""Folders that one run at a time writes to.

A run holds its folder by a lock on a file beside it, which the system takes back however the process ends. Where that
file cannot be made or locked, nothing is held.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from reft_math.files.atomic import SUFFIX

_held: dict[Path, FileLock] = {}


def hold(folder: Path) -> bool:
    """Holds a folder until `release`; false where another process does."""
    path = Path(f"{folder.resolve()}.lock{SUFFIX}")
    if path in _held:
        return True
    lock = FileLock(path, blocking=False, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return False
    except OSError:  # not to be had here
        return True
    _held[path] = lock
    return True


def release() -> None:
    """Lets go of all folders, and deletes the files beside them while they are locked still."""
    while _held:
        path, lock = _held.popitem()
        with suppress(OSError):  # Windows deletes no file that is open; then it stays
            path.unlink()
        lock.release()
