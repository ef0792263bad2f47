"""MATH answers by math-verify, in worker processes that hard limits of time and memory hold.

math-verify limits its time by SIGALRM, which raises in any thread but the main one and waits until a call into C
returns. Here its limits are off; the parent process watches the clock, kills a worker that is late and goes on.
Workers are spawned: they import the main script again, so that one keeps its heavy imports inside functions and its
start under ``if __name__ == "__main__":``. Nothing is imported here that would bring torch into a worker. A worker that
dies is replaced, and its pair is given to another one: a completion is not wrong since a machine was short of memory.
"""

from __future__ import annotations

import faulthandler
import logging
import math
import multiprocessing
import signal
import sys
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Self

from reft_math.errors import UserError
from reft_math.scoring.notation import plain_numbers

logger = logging.getLogger(__name__)

MEMORY_LIMIT = 2**30  # a worker that has loaded everything has 0.1 GB


@dataclass(frozen=True)
class Equivalence:
    """The verdict on one pair.

    Attributes:
        is_correct: Whether the completion's answer is equivalent to gold.
        unscored: Whether the pair was given up, and counts as not equivalent for that reason alone: at the time limit,
            or when two workers had died over it.
        timed_out: Whether it was the time limit.
        prediction: The answer's text as math-verify found it, ``None`` where it found none or the pair was given up.
    """

    is_correct: bool
    unscored: bool
    timed_out: bool
    prediction: str | None


_TIMED_OUT = Equivalence(is_correct=False, unscored=True, timed_out=True, prediction=None)
_DIED = Equivalence(is_correct=False, unscored=True, timed_out=False, prediction=None)


def compare(gold: str, completion: str) -> Equivalence:
    """``verify(parse("$" + gold + "$"), parse(completion))``, in this process and without limits.

    Bare golds are read as plain expressions: only 392 of the 500 reference solutions of MATH500 pass; wrapped all do.
    Numbers are read by `plain_numbers` first: math-verify reads 1 in ``1e999999`` and in ``1'234``, 3 in ``3½``.

    Args:
        gold: The reference answer in LaTeX, without dollar signs.
        completion: What the model wrote.
    """
    from math_verify import parse, verify  # 2 s of sympy that only workers need

    answer = parse(plain_numbers(completion), parsing_timeout=0)
    is_correct = verify(parse(f"${plain_numbers(gold)}$", parsing_timeout=0), answer, timeout_seconds=0)
    # Not str() of the sympy expression: it can take for ever.
    prediction = next((part for part in answer if isinstance(part, str)), None)
    return Equivalence(is_correct=is_correct, unscored=False, timed_out=False, prediction=prediction)


class MathVerifier:
    """Scores pairs of gold and completion in `num_workers` processes, each pair within `time_limit` seconds.

    Use as a context manager. Workers start with the first pairs and stay for later calls; the time a worker takes to
    start does not count. No worker has more than `MEMORY_LIMIT` bytes of address space (on Linux; elsewhere there is no
    such limit): what cannot be computed in it is not equivalent.

    Args:
        num_workers: Processes at most.
        time_limit: Seconds a pair may take before its worker is killed.

    Raises:
        UserError: If there is no worker or no time.
    """

    def __init__(self, num_workers: int = 2, time_limit: float = 10.0) -> None:
        if num_workers < 1:
            raise UserError(f"math-verify needs a worker: expected num_workers >= 1, got {num_workers}; try 2")
        if not time_limit > 0:
            raise UserError(f"math-verify needs time: expected time_limit > 0 seconds, got {time_limit}; try 10")
        self.num_workers = num_workers
        self.time_limit = time_limit
        self._workers: list[_Worker] = []
        self._failed_starts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends all workers."""
        while self._workers:
            self._workers.pop().kill()

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Equivalence]:
        """The verdicts on ``(gold, completion)`` pairs, in their order.

        Args:
            pairs: Gold without dollar signs, and what the model wrote.

        Raises:
            RuntimeError: If two workers die before they have started, e.g. since math-verify cannot be imported.
        """
        waiting = deque(enumerate(pairs))
        verdicts: dict[int, Equivalence] = {}
        tried: set[int] = set()
        try:
            while len(verdicts) < len(pairs):
                self._hand_out(waiting)
                for index, verdict in self._collect().items():
                    if verdict is _DIED and index not in tried:
                        tried.add(index)
                        waiting.appendleft((index, pairs[index]))
                    else:
                        verdicts[index] = verdict
        except BaseException:
            self.close()  # or a pair under way would answer into the next call
            raise
        return [verdicts[index] for index in range(len(pairs))]

    def _hand_out(self, waiting: deque[tuple[int, tuple[str, str]]]) -> None:
        """Gives waiting pairs to idle workers, starting workers up to `num_workers`."""
        idle = []
        for worker in [each for each in self._workers if not each.is_busy]:
            if worker.process.is_alive():
                idle.append(worker)
            else:
                self._discard(worker)
        while waiting and (idle or len(self._workers) < self.num_workers):
            if not idle:
                idle.append(_Worker(self.time_limit))
                self._workers.append(idle[-1])
            idle.pop().give(*waiting.popleft())

    def _collect(self) -> dict[int, Equivalence]:
        """Waits for the next message or deadline, and returns the verdicts that came of it by their pair's index."""
        busy = [worker for worker in self._workers if worker.is_busy]
        deadline = min(worker.deadline for worker in busy)
        timeout = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
        ready = wait([worker.connection for worker in busy], timeout)
        verdicts: dict[int, Equivalence] = {}
        for worker in busy:
            index, verdict = worker.index, self._verdict(worker, ready)
            if index is not None and verdict is not None:
                verdicts[index] = verdict
                worker.rest()
        return verdicts

    def _verdict(self, worker: _Worker, ready: Collection[object]) -> Equivalence | None:
        """What became of the worker's pair, or ``None`` while it is under way."""
        if worker.connection not in ready:
            if time.monotonic() < worker.deadline:
                return None
            self._discard(worker)
            return _TIMED_OUT
        try:
            verdict: Equivalence | None = worker.connection.recv()
        except (EOFError, OSError):
            self._discard(worker)
            self._count_death(worker)
            return _DIED
        if verdict is None:
            worker.has_started = True
            worker.deadline = time.monotonic() + self.time_limit
        return verdict

    def _count_death(self, worker: _Worker) -> None:
        self._failed_starts = 0 if worker.has_started else self._failed_starts + 1
        if self._failed_starts > 1:
            raise RuntimeError("two math-verify workers died before they started; their errors are above")
        logger.warning("a math-verify worker died (exit code %s) and is replaced", worker.process.exitcode)

    def _discard(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.kill()


class _Worker:
    """A process, the parent's end of its pipe, and the pair it works on; the deadline is set once it begins."""

    def __init__(self, time_limit: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, time_limit), daemon=True)
        with _deaf_to_interrupts():  # Ctrl-C is for the parent, which ends the workers
            self.process.start()
        self.has_started = False
        theirs.close()  # so that its death is the end of the pipe
        self.rest()

    def rest(self) -> None:
        self.index: int | None = None
        self.deadline = math.inf

    @property
    def is_busy(self) -> bool:
        return self.index is not None

    def give(self, index: int, pair: tuple[str, str]) -> None:
        self.index = index
        with suppress(OSError):  # it is dead; so says the end of the pipe
            self.connection.send(pair)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, time_limit: float) -> None:
    """A worker's life: for each pair ``None`` as it begins, then the verdict."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limits are off
    compare("1", "$1$")  # imports and grammars load outside the limits
    _limit_memory()
    with suppress(EOFError, ConnectionError):
        while True:
            gold, completion = connection.recv()
            connection.send(None)
            # Where the parent was killed nobody watches: the watchdog, which no call into C can stop, ends the orphan.
            faulthandler.dump_traceback_later(2 * time_limit, exit=True)
            verdict = compare(gold, completion)
            faulthandler.cancel_dump_traceback_later()
            connection.send(verdict)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """A process started within never gets SIGINT, not even while it imports, when it could not have said so itself.

    The signal is held back from this thread, and so from the process that it starts; here it arrives afterwards.
    """
    if sys.platform == "win32":  # has no such mask
        yield
        return
    resource_tracker.ensure_running()  # multiprocessing's own helper, whose start would lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _limit_memory() -> None:
    if sys.platform != "linux":  # Windows has no resource, macOS refuses such a limit
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = MEMORY_LIMIT if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
