"""Compares MATH answers by math-verify, in worker processes with hard limits of time and memory.

math-verify limits its time by SIGALRM, which fails outside the main thread and waits until a call into C returns. Here
its limits are off, and `math_server` watches the clock. Nothing imported here may load torch in a worker.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from reft_math.errors import UserError
from reft_math.scoring.answer_form import is_wordy, latex_signs, normal_form
from reft_math.scoring.answer_text import is_list, stated_answers, stated_words
from reft_math.scoring.equality import same_value, same_words
from reft_math.scoring.notation import plain_numbers


@dataclass(frozen=True)
class Equivalence:
    """The verdict on one pair.

    Attributes:
        is_correct: Whether the completion's answer is equivalent to gold.
        unscored: Whether the pair was given up, at the time limit or after two workers died, and only so counts as not
            equivalent.
        timed_out: Whether it was given up at the time limit.
        prediction: The answer in normal form; ``None`` if no answer is stated or the pair was given up.
    """

    is_correct: bool
    unscored: bool
    timed_out: bool
    prediction: str | None


TIMED_OUT = Equivalence(is_correct=False, unscored=True, timed_out=True, prediction=None)
DIED = Equivalence(is_correct=False, unscored=True, timed_out=False, prediction=None)


def compare(gold: str, completion: str) -> Equivalence:
    """Compares gold with the answer that the completion states, in this process and without limits.

    Args:
        gold: The reference answer in LaTeX, without dollar signs.
        completion: The model's completion.
    """
    gold, text = plain_numbers(gold), latex_signs(plain_numbers(completion))
    if is_wordy(gold):
        words = (stated_words(text) or "").strip()
        return _judged(same_words(gold, words), words)
    gold, answers = normal_form(gold), [normal_form(answer) for answer in stated_answers(text)]
    together = ", ".join(answers)
    # "5/4, or 1.25" is one quantity, "5 or 6" is not.
    alone = answers if is_list(answers) else answers[-1:]
    is_correct = bool(together) and same_value(gold, together)
    if len(answers) > 1 and not is_correct:
        is_correct = all(same_value(gold, answer) for answer in alone)
    return _judged(is_correct, together)


def _judged(is_correct: bool, prediction: str) -> Equivalence:
    return Equivalence(is_correct=is_correct, unscored=False, timed_out=False, prediction=prediction or None)


class MathVerifier:
    """Scores pairs of gold and completion in `num_workers` processes, each pair within `time_limit` seconds.

    Use as a context manager, from any script, notebook or process. Workers start with the first pairs and stay for
    later calls; their start-up time does not count. On Linux a worker may take 1 GiB beyond its memory at the start.

    Args:
        num_workers: Maximum number of processes.
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
        self._server: subprocess.Popen[str] | None = None
        self._owner = os.getpid()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends all workers, except after a fork those of the parent process."""
        server, self._server = self._server, None
        if server is None or self._owner != os.getpid():
            return
        with suppress(OSError):
            if sys.platform == "win32":
                server.kill()
            else:
                os.killpg(server.pid, signal.SIGKILL)
        with suppress(OSError):  # unsent input
            server.communicate()

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Equivalence]:
        """Returns the verdicts on ``(gold, completion)`` pairs, in order.

        Args:
            pairs: Gold without dollar signs, and the model's completion.

        Raises:
            UserError: If no worker lives, e.g. since math-verify cannot be imported.
        """
        question = json.dumps([list(pair) for pair in pairs]) + "\n"
        for _ in range(2 if pairs else 0):
            try:
                answer = self._ask(question)
            except BaseException:
                self.close()  # otherwise pairs under way would answer the next call
                raise
            if answer:
                return [Equivalence(*verdict) for verdict in json.loads(answer)]
            self.close()
        if pairs:
            raise UserError(
                "math-verify needs a process of its own: two were started, and both ended before they answered; their "
                "errors are above"
            )
        return []

    def _ask(self, question: str) -> str:
        """Returns the server's answer; empty if the server is dead."""
        if self._server is None or self._owner != os.getpid():
            self._server, self._owner = _started(self.num_workers, self.time_limit), os.getpid()
        stdin, stdout = self._server.stdin, self._server.stdout
        assert stdin is not None
        assert stdout is not None
        with suppress(BrokenPipeError):
            stdin.write(question)
            stdin.flush()
        return stdout.readline()


def _started(num_workers: int, time_limit: float) -> subprocess.Popen[str]:
    """Starts a server with this process's import path, in its own session, so that Ctrl-C does not reach it."""
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "reft_math.scoring.math_server", str(num_workers), str(time_limit)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,
    )
