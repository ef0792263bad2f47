"""Folders that one run at a time writes to.

A run holds its folder by a lock on the folder itself: there is no file to be left behind, and the system takes the lock
back however the process ends. Windows, and file systems that lock no folders (NFS), hold nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_held: dict[tuple[int, int], int] = {}  # descriptors by what is the same folder under any name


def hold(folder: Path) -> bool:
    """Holds a folder until `release`; false where another process does."""
    if fcntl is None:
        return True
    about = folder.stat()
    if (about.st_dev, about.st_ino) in _held:
        return True
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    except OSError:  # not to be had here
        os.close(descriptor)
        return True
    _held[about.st_dev, about.st_ino] = descriptor
    return True


def release() -> None:
    """Lets go of all folders."""
    while _held:
        os.close(_held.popitem()[1])
