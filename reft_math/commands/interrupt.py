"""Ends that come from outside: the process goes at once, as by a kill, with all that it has started, and says how to
go on. What is finished is on the disk."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread

import psutil  # type: ignore[import-untyped]

EXIT_CODE = 130  # the shell's for a process that Ctrl-C ended
PARENT = "REFT_MATH_PARENT"  # in the environment: the number of the process that this one is not to outlive
_LOOK_S = 0.5


@contextmanager
def ends_on_interrupt(last_words: Callable[[], str]) -> Iterator[None]:
    """Within, Ctrl-C prints the last words and ends the process with all processes that it has started.

    A thread does so: Python would run a handler when the main thread is back from what it is at in C, such as a
    backward pass, or waiting for another process. Where Ctrl-C is ignored or handled already, it stays so.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    thread = Thread(target=_watch, args=(reader, last_words), daemon=True)
    thread.start()
    signal.signal(signal.SIGINT, lambda *_: thread.join())  # the main thread does nothing more
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
    """From here on the process ends soon after the one that started it, where `PARENT` or ``torchrun`` says which.

    A launcher that is killed takes nobody along: its workers would wait for each other, or write where a run that was
    started again writes. A shell may go, and its commands stay.
    """
    parent = os.environ.pop(PARENT, None)  # those that this one starts have another
    if parent is None and "TORCHELASTIC_RUN_ID" in os.environ:
        parent = str(os.getppid())
    if parent is not None:
        Thread(target=_watch_parent, args=(int(parent), last_words), daemon=True).start()


def _watch_parent(parent: int, last_words: Callable[[], str]) -> None:
    """An orphan is given another parent."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    _end(last_words())


def _watch(reader: int, last_words: Callable[[], str]) -> None:
    """Reads the numbers of signals as they come; 0 is the end."""
    while number := os.read(reader, 1)[0]:
        if number == signal.SIGINT:
            _end(last_words())


def _end(last_words: str) -> None:
    try:
        with suppress(OSError):  # who read them may be gone as well
            os.write(2, last_words.encode())
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    finally:
        os._exit(EXIT_CODE)
