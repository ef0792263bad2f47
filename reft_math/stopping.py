"""Ctrl-C: the process ends at once, as a kill would end it, and says how to go on. What is finished is on the disk."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread

import psutil  # type: ignore[import-untyped]

EXIT_CODE = 130  # the shell's for a process that Ctrl-C ended


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


def _watch(reader: int, last_words: Callable[[], str]) -> None:
    """Reads the numbers of signals as they come; 0 is the end."""
    while number := os.read(reader, 1)[0]:
        if number == signal.SIGINT:
            _end(last_words())


def _end(last_words: str) -> None:
    try:
        os.write(2, last_words.encode())
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    finally:
        os._exit(EXIT_CODE)
