"""Faults at every file-system call of a piece of work, one after another: the process dies there, or the call fails."""

from __future__ import annotations

import errno
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

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
