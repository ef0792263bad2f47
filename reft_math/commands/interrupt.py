"""Ends the process and its children at once on Ctrl-C or its launcher's end, and says how to go on.
Finished work is on the disk."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread

import psutil  # type: ignore[import-untyped]

EXIT_CODE = 130  # the shell's code for a process ended by Ctrl-C
PARENT = "REFT_MATH_PARENT"  # environment variable: id of the process that this one must not outlive
_LOOK_S = 0.5


@contextmanager
def ends_on_interrupt(last_words: Callable[[], str]) -> Iterator[None]:
    """Makes Ctrl-C print the last words and end the process with all processes that it has started.

    A thread does it: Python would run a handler only when the main thread returns from C code, such as a backward
    pass or waiting for another process. If Ctrl-C is already ignored or handled, nothing changes.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    thread = Thread(target=_watch, args=(reader, last_words), daemon=True)
    thread.start()
    signal.signal(signal.SIGINT, lambda *_: thread.join())  # stops the main thread
    before = signal.set_wakeup_fd(writer)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.write(writer, b"\0")
        thread.join()
        os.close(reader)
        os.close(writer)


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
    _end(last_words())


def _watch(reader: int, last_words: Callable[[], str]) -> None:
    """Reads signal numbers as they arrive; 0 ends the thread."""
    while number := os.read(reader, 1)[0]:
        if number == signal.SIGINT:
            _end(last_words())


def _end(last_words: str) -> None:
    try:
        with suppress(OSError):  # the reader may be gone as well
            os.write(2, last_words.encode())
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    finally:
        os._exit(EXIT_CODE)
