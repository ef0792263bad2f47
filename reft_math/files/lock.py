"""Locks folders so that only one run at a time writes to them.

A run holds its folder by a lock on a file beside it, which the system releases however the process ends. If that
file cannot be created or locked, nothing is held.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from reft_math.files.atomic import SUFFIX

_held: dict[Path, FileLock] = {}


def hold(folder: Path) -> bool:
    """Holds a folder until `release`; returns false if another process holds it."""
    path = Path(f"{folder.resolve()}.lock{SUFFIX}")
    if path in _held:
        return True
    lock = FileLock(path, blocking=False, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return False
    except OSError:  # no locks here
        return True
    _held[path] = lock
    return True


def release() -> None:
    """Releases all folders, and deletes the files beside them while they are still locked."""
    while _held:
        path, lock = _held.popitem()
        with suppress(OSError):  # Windows cannot delete an open file; then it stays
            path.unlink()
        lock.release()
