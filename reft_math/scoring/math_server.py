"""Runs math-verify in processes started by `MathVerifier`: ``-m reft_math.scoring.math_server 2 10.0``.

It is a separate interpreter that inherits nothing of the caller's, so it works from any script, in notebooks and in the
daemonic processes of a pool, where multiprocessing would run the script again or refuse; and it is small, whatever the
caller has loaded. In it pebble manages the workers, kills one at its time limit and starts another, quickly, since a
fork server has math-verify loaded. It reads one JSON list of pairs per line, writes one JSON list of verdicts per line,
and ends when its standard input closes, which happens when the caller ends.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor, wait
from dataclasses import astuple
from pathlib import Path
from typing import TextIO

from pebble import ProcessExpired, ProcessPool

from reft_math.scoring.math_equivalence import DIED, TIMED_OUT, Equivalence, compare

MEMORY = 2**30  # bytes that a worker may take beyond its memory at the start


def main(num_workers: int, time_limit: float) -> None:
    """Answers lines until the input ends, then ends itself and its workers."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a worker's print must not be read as a verdict
    context = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
    context.set_forkserver_preload(["reft_math.scoring.equality", "math_verify"])
    pool = ProcessPool(num_workers, initializer=_prepare, context=context)
    try:
        works = _judge(pool, time_limit, ("1", "$1$")).is_correct
    except RuntimeError:
        works = False
    if not works:
        _end("a math-verify worker cannot judge that 1 is 1")
    for line in sys.stdin:
        threading.Thread(target=_answer, args=(pool, num_workers, time_limit, line, answers)).start()
    _end()


def _answer(pool: ProcessPool, num_workers: int, time_limit: float, line: str, answers: TextIO) -> None:
    try:
        with ThreadPoolExecutor(num_workers) as threads:
            verdicts = list(threads.map(lambda pair: _judge(pool, time_limit, pair), json.loads(line)))
    except RuntimeError as error:  # pebble gives up if an idle worker is killed
        _end(f"math-verify's workers are gone: {error}")
    print(json.dumps([astuple(verdict) for verdict in verdicts]), file=answers, flush=True)


def _judge(pool: ProcessPool, time_limit: float, pair: tuple[str, str]) -> Equivalence:
    """Returns the verdict; a pair whose worker dies is tried once more: the machine may have been short of memory."""
    for _ in range(2):
        future = pool.schedule(compare, args=pair, timeout=time_limit)
        _await(future, pool)
        try:
            return future.result()
        except TimeoutError:
            return TIMED_OUT
        except ProcessExpired:
            continue
        except BrokenExecutor:
            raise
        except Exception:  # too deep or too large for sympy
            return DIED
    return DIED


def _await(future: Future[Equivalence], pool: ProcessPool) -> None:
    """Waits until the future is done; one that was scheduled while the pool broke down never would be."""
    while not wait([future], timeout=0.5).done:
        if not pool.active:
            raise RuntimeError("a pair was lost with its pool")


def _prepare() -> None:
    """Initialises a worker: loads everything, and limits its memory."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # at once; pebble's own handler waits for a call into C
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limits are off
    compare("1", "$1$")
    _limit_memory()


def _limit_memory() -> None:
    if sys.platform != "linux":  # Windows has no resource, macOS refuses such a limit
        return
    import resource

    present = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = present + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _end(message: str = "") -> None:
    """Ends this process and its workers, which form a group, at once."""
    print(message, end="\n" if message else "", file=sys.stderr, flush=True)
    if sys.platform != "win32":
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
