"""Faults at every file-system call of a piece of work, one after another: the process dies there, or the call fails.

And what a loss of power would have taken of it.
"""

from __future__ import annotations

import errno
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn
from unittest import mock

CALLS = {
    *("open", "write", "flush", "close", "__exit__", "truncate", "fsync"),
    *("replace", "rename", "unlink", "mkdir", "rmdir"),
}
_DIED, _WENT_THROUGH = 9, 0


def killed_at_every_call(work: Callable[[], object]) -> Iterator[None]:
    """Runs the work in child processes, one of which dies before each call; comes back after each death."""
    for number in itertools.count():
        child = os.fork()
        if child == 0:
            _work_in_child(work, number)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == _WENT_THROUGH:
            return
        assert code == _DIED
        yield


def failing_at_every_call(work: Callable[[], object]) -> Iterator[OSError | None]:
    """Runs the work here, each time with another call that fails as on a full disk; gives the error if it came out."""
    for number in itertools.count():
        before, watch = sys.getprofile(), _Watch(number, _fail)
        raised = None
        sys.setprofile(watch)
        try:
            work()
        except OSError as error:
            raised = error
        finally:
            sys.setprofile(before)
        if watch.left >= 0:
            return
        yield raised


def lost_without_power(work: Callable[[], object], root: Path) -> list[str]:
    """Does the work, and names what below ``root`` was not on the disk when it had to be.

    A file's content has to be when it takes its name, for the name may reach the disk first; contents and lists of
    names when the work is done. On the disk is what was there before, and what ``fsync`` was called for since.
    """
    disk = {path: _content(path) for path in (root, *root.rglob("*"))}
    lost = []

    def fsync(descriptor: int, call: Callable[[int], None] = os.fsync) -> None:
        call(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        disk[path] = _content(path)

    def moved(old: Path, new: Path, call: Callable[[Path, Path], None] = os.rename) -> None:
        files = [path for path in (old, *old.rglob("*")) if path.is_file()]
        lost.extend(f"{path.name}, when it took its name" for path in files if disk.get(path) != _content(path))
        inner = {path: path.relative_to(old) for path in (old, *old.rglob("*"))}
        call(old, new)
        disk.update({new / place: disk.pop(path) for path, place in inner.items() if path in disk})

    with mock.patch("os.fsync", fsync), mock.patch("os.replace", moved), mock.patch("os.rename", moved):
        work()
    paths = (root, *root.rglob("*"))
    return lost + [f"{path.relative_to(root)}, in the end" for path in paths if disk.get(path) != _content(path)]


def _content(path: Path) -> object:
    """A file's bytes, a folder's names: but for what stands aside, which may come back and is never read."""
    if path.is_file():
        return path.read_bytes()
    return sorted(name for name in os.listdir(path) if not name.endswith(".tmp"))


class _Watch:
    """A profiler that commits the fault before the call of that number."""

    def __init__(self, number: int, fault: Callable[[], None]) -> None:
        self.left = number
        self.fault = fault

    def __call__(self, frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call" and called.__name__ in CALLS:
            self.left -= 1
            if self.left == -1:
                self.fault()


def _work_in_child(work: Callable[[], object], number: int) -> NoReturn:
    code = 1
    try:
        sys.setprofile(_Watch(number, lambda: os._exit(_DIED)))
        work()
        code = _WENT_THROUGH
    finally:
        os._exit(code)


def _fail() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
