"""MATH answers by math-verify, in worker processes that a hard time limit holds.

math-verify limits its time by SIGALRM, which raises in any thread but the main one and waits until a call into C
returns. Here its limits are off; the parent process watches the clock, kills a worker that is late and goes on.
Workers are spawned: they import the main script again, so that one keeps its heavy imports inside functions and its
start under ``if __name__ == "__main__":``. Nothing is imported here that would bring torch into a worker.
"""

from __future__ import annotations

import faulthandler
import logging
import math
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Self

from reft_math.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Equivalence:
    """The verdict on one pair.

    Attributes:
        is_correct: Whether the completion's answer is equivalent to gold.
        timed_out: Whether the pair was given up at the time limit, and counts as not equivalent for that reason alone.
        prediction: The answer's text as math-verify found it, ``None`` where it found none or the pair was given up.
    """

    is_correct: bool
    timed_out: bool
    prediction: str | None


def compare(gold: str, completion: str) -> Equivalence:
    """``verify(parse("$" + gold + "$"), parse(completion))``, in this process and without a time limit.

    Bare golds are read as plain expressions: only 392 of the 500 reference solutions of MATH500 pass; wrapped all do.

    Args:
        gold: The reference answer in LaTeX, without dollar signs.
        completion: What the model wrote.
    """
    from math_verify import parse, verify  # 2 s of sympy that only workers need

    answer = parse(completion, parsing_timeout=0)
    is_correct = verify(parse(f"${gold}$", parsing_timeout=0), answer, timeout_seconds=0)
    # Not str() of the sympy expression: it can take for ever.
    prediction = next((part for part in answer if isinstance(part, str)), None)
    return Equivalence(is_correct=is_correct, timed_out=False, prediction=prediction)


class MathVerifier:
    """Scores pairs of gold and completion in `num_workers` processes, each pair within `time_limit` seconds.

    Use as a context manager. Workers start with the first pairs and stay for later calls; the time a worker takes to
    start does not count.

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
            RuntimeError: If a worker dies before it has started, e.g. since math-verify cannot be imported.
        """
        waiting = deque(enumerate(pairs))
        verdicts: dict[int, Equivalence] = {}
        try:
            while len(verdicts) < len(pairs):
                self._hand_out(waiting)
                verdicts.update(self._collect())
        except BaseException:
            self.close()  # or a pair under way would answer into the next call
            raise
        return [verdicts[index] for index in range(len(pairs))]

    def _hand_out(self, waiting: deque[tuple[int, tuple[str, str]]]) -> None:
        """Gives waiting pairs to idle workers, starting workers up to `num_workers`."""
        self._workers = [worker for worker in self._workers if worker.is_busy or worker.process.is_alive()]
        idle = [worker for worker in self._workers if not worker.is_busy]
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
            return Equivalence(is_correct=False, timed_out=True, prediction=None)
        try:
            verdict: Equivalence | None = worker.connection.recv()
        except (EOFError, OSError):
            self._discard(worker)
            if worker.deadline == math.inf:
                raise RuntimeError("a math-verify worker died before it started; its error is above") from None
            logger.warning(
                "a math-verify worker died (exit code %s); its pair is scored wrong", worker.process.exitcode
            )
            return Equivalence(is_correct=False, timed_out=False, prediction=None)
        if verdict is None:
            worker.deadline = time.monotonic() + self.time_limit
        return verdict

    def _discard(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.kill()


class _Worker:
    """A process, the parent's end of its pipe, and the pair it works on; the deadline is set once it begins."""

    def __init__(self, time_limit: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, time_limit), daemon=True)
        self.process.start()
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
        self.connection.send(pair)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, time_limit: float) -> None:
    """A worker's life: for each pair ``None`` as it begins, then the verdict."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the workers
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limits are off
    compare("1", "$1$")  # imports and grammars load outside the time limit
    with suppress(EOFError, ConnectionError):
        while True:
            gold, completion = connection.recv()
            connection.send(None)
            # Where the parent was killed nobody watches: the watchdog, which no call into C can stop, ends the orphan.
            faulthandler.dump_traceback_later(2 * time_limit, exit=True)
            verdict = compare(gold, completion)
            faulthandler.cancel_dump_traceback_later()
            connection.send(verdict)
