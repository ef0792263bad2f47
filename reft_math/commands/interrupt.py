"""Ends the process and its children at once on Ctrl-C, SIGTERM or its launcher's end, and says how to go on.
Finished work is on the disk."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any

import psutil  # type: ignore[import-untyped]

_DEFAULTS: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
_watched: list[signal.Signals] = []
PARENT = "REFT_MATH_PARENT"  # environment variable: id of the process that this one must not outlive
_LOOK_S = 0.5


@contextmanager
def ends_on_interrupt(last_words: Callable[[], str]) -> Iterator[None]:
    """Makes Ctrl-C and SIGTERM, which ``timeout`` and schedulers send, print the last words and end the process with
    all processes that it has started; the exit code is the shell's, 128 and the signal's number.

    A thread does it: Python would run a handler only when the main thread returns from C code, such as a backward
    pass or waiting for another process. A signal that is already ignored or handled stays so.
    """
    unhandled = [number for number, handler in _DEFAULTS.items() if signal.getsignal(number) == handler]
    if not unhandled:
        yield
        return
    _watched[:] = unhandled
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    thread = Thread(target=_watch, args=(reader, last_words), daemon=True)
    thread.start()
    for number in _watched:
        signal.signal(number, lambda *_: thread.join())  # stops the main thread
    before = signal.set_wakeup_fd(writer)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        _unwatch()
        os.write(writer, b"\0")
        thread.join()
        os.close(reader)
        os.close(writer)


def _unwatch() -> None:
    for number in _watched:
        signal.signal(number, _DEFAULTS[number])
    _watched.clear()


def _forget() -> None:
    """Lets a forked process end by its own signals: it has no watching thread, and its parent's is not meant."""
    if _watched:
        signal.set_wakeup_fd(-1)
        _unwatch()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_forget)


def end_with_parent(last_words: Callable[[], str]) -> None:
    """Ends the process soon after the one that started it, if `PARENT` or ``torchrun`` says which that is.

    Killing a launcher does not end its workers: they would wait for each other, or write into the folder of a run
    that was started again. Commands outlive the shell that started them.
    """
    parent = os.environ.pop(PARENT, None)  # child processes get another parent
    if parent is None and "TORCHELASTIC_RUN_ID" in os.environ:
        parent = str(os.getppid())
    if parent is not None:
        Thread(target=_watch_parent, args=(int(parent), last_words), daemon=True).start()


def _watch_parent(parent: int, last_words: Callable[[], str]) -> None:
    """Waits until the process gets another parent, as an orphan does, and ends it."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    _end(last_words(), signal.SIGINT)


def _watch(reader: int, last_words: Callable[[], str]) -> None:
    """Reads signal numbers as they arrive; 0 ends the thread."""
    while number := os.read(reader, 1)[0]:
        if number in _watched:
            _end(last_words(), number)


def _end(last_words: str, number: int) -> None:
    try:
        with suppress(OSError):  # the reader may be gone as well
            os.write(2, last_words.encode())
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    finally:
        os._exit(128 + number)
