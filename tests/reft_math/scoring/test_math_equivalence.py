"""The pool of workers, who are threads here and a clock that only they move, and what one worker does.

Real processes and real time are in `test_math_workers`.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from types import SimpleNamespace
from typing import Any

import pytest

from reft_math.errors import UserError
from reft_math.scoring import math_equivalence
from reft_math.scoring.math_equivalence import Equivalence, MathVerifier, compare

RIGHT = Equivalence(is_correct=True, unscored=False, timed_out=False, prediction="right")
LATE = Equivalence(is_correct=False, unscored=True, timed_out=True, prediction=None)
DIED = Equivalence(is_correct=False, unscored=True, timed_out=False, prediction=None)


class FakeWorkers:
    """In place of `multiprocessing`'s context and of time.

    What a worker does with a completion is what that says, "A then B" being A at the first try and B at the others.
    """

    def __init__(self) -> None:
        self.now = 100.0
        self.timeouts: list[float | None] = []
        self.tries = Counter[str]()
        self.started: list[FakeProcess] = []
        self.ours: dict[Connection, Connection] = {}

    def Pipe(self) -> tuple[Connection, Connection]:
        ours, theirs = Pipe()
        self.ours[theirs] = ours
        return ours, theirs

    def Process(self, target: object, args: tuple[Connection, float], daemon: bool) -> FakeProcess:
        assert (target, daemon) == (math_equivalence._serve, True)
        self.started.append(FakeProcess(self, self.ours[args[0]], *args))
        return self.started[-1]

    def wait(self, connections: Sequence[Connection], timeout: float | None) -> Sequence[object]:
        """Time passes only where everybody hangs, and then to the deadline."""
        self.timeouts.append(timeout)
        assert len(self.timeouts) < 100, "this does not end"
        working = [each for each in self.started if each.ours in connections and not each.is_hanging()]
        if not working and timeout is not None:
            self.now += timeout
            return []
        ready = wait([each.ours for each in working], 5)
        assert ready, "nobody answers"
        return ready


class FakeProcess:
    def __init__(self, pool: FakeWorkers, ours: Connection, theirs: Connection, time_limit: float) -> None:
        self.pool, self.ours, self.time_limit = pool, ours, time_limit
        self.theirs = Connection(os.dup(theirs.fileno()))  # as a process has a copy of it
        self.exitcode: int | None = None
        self.killed, self.joined, self.hangs, self.has_begun = False, False, False, threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def start(self) -> None:
        self.thread.start()

    def is_alive(self) -> bool:
        return self.exitcode is None

    def kill(self) -> None:
        self.killed = True

    def join(self) -> None:
        assert self.killed
        self.joined = True

    def is_hanging(self) -> bool:
        return self.hangs and self.has_begun.wait(5) and not self.ours.poll()

    def run(self) -> None:
        with suppress(EOFError, OSError), self.theirs:
            while True:
                _, completion = self.theirs.recv()
                acts = completion.split(" then ")
                act = acts[min(self.pool.tries[completion], len(acts) - 1)]
                self.pool.tries[completion] += 1
                if act == "fails to start":
                    self.exitcode = 3
                    return
                if act == "starts late":
                    self.pool.now += 10 * self.time_limit
                self.hangs = act == "hangs"
                self.theirs.send(None)
                self.has_begun.set()
                if self.hangs:
                    continue
                if act == "dies":
                    self.exitcode = 9
                    return
                self.exitcode = 1 if act == "answers and dies" else None
                self.theirs.send(RIGHT)
                if act in ("answers and dies", "answers and hangs up"):
                    return


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWorkers]:
    fakes = FakeWorkers()
    monkeypatch.setattr("multiprocessing.get_context", {"spawn": fakes}.__getitem__)
    monkeypatch.setattr(math_equivalence, "wait", fakes.wait)
    monkeypatch.setattr(math_equivalence, "time", SimpleNamespace(monotonic=lambda: fakes.now))
    yield fakes
    assert all(worker.killed and worker.joined and worker.ours.closed for worker in fakes.started)


def pairs(*completions: str) -> list[tuple[str, str]]:
    return [("1", completion) for completion in completions]


def test_workers_are_started_as_needed_and_serve_again(workers: FakeWorkers) -> None:
    with MathVerifier(num_workers=2) as verifier:
        assert verifier.score([]) == []
        assert workers.started == []
        assert verifier.score(pairs("answers")) == [RIGHT]
        assert len(workers.started) == 1
        assert verifier.score(pairs(*["answers"] * 5)) == [RIGHT] * 5
        assert len(workers.started) == 2
        assert verifier.score(pairs(*["answers"] * 5)) == [RIGHT] * 5
        assert len(workers.started) == 2
        assert [worker.time_limit for worker in workers.started] == [10, 10]
        assert not any(worker.killed for worker in workers.started)


def test_two_workers_and_ten_seconds_unless_told() -> None:
    verifier = MathVerifier()
    assert (verifier.num_workers, verifier.time_limit) == (2, 10)


def test_verdicts_are_in_the_pairs_order(workers: FakeWorkers) -> None:
    """The first pair's verdict comes last: it hangs, and only then does time pass."""
    with MathVerifier(num_workers=2, time_limit=0.1) as verifier:
        assert verifier.score(pairs("hangs", "answers", "answers", "dies")) == [LATE, RIGHT, RIGHT, DIED]


def test_who_hangs_is_killed_at_the_limit_and_replaced(workers: FakeWorkers) -> None:
    with MathVerifier(num_workers=1, time_limit=0.5) as verifier:
        assert verifier.score(pairs("hangs", "answers", "hangs", "answers")) == [LATE, RIGHT, LATE, RIGHT]
        assert workers.now == 100 + 2 * 0.5
        assert [worker.killed for worker in workers.started] == [True, True, False]
    assert all(timeout is None or timeout == 0.5 for timeout in workers.timeouts)


def test_several_who_hang_are_each_given_their_time(workers: FakeWorkers) -> None:
    with MathVerifier(num_workers=2, time_limit=7) as verifier:
        assert verifier.score(pairs("hangs", "starts late", "hangs")) == [LATE, RIGHT, LATE]
    assert all(timeout is None or 0 <= timeout <= 7 for timeout in workers.timeouts)


def test_the_time_to_start_does_not_count(workers: FakeWorkers) -> None:
    with MathVerifier(num_workers=1, time_limit=7) as verifier:
        assert verifier.score(pairs("starts late", "answers")) == [RIGHT, RIGHT]
    assert len(workers.started) == 1


def test_a_pair_whose_worker_dies_is_scored_again_and_next(
    workers: FakeWorkers, caplog: pytest.LogCaptureFixture
) -> None:
    with MathVerifier(num_workers=1) as verifier:
        assert verifier.score(pairs("dies then answers", "answers", "answers")) == [RIGHT, RIGHT, RIGHT]
    assert len(workers.started) == 2
    assert list(workers.tries) == ["dies then answers", "answers"]
    assert caplog.messages == ["a math-verify worker died (exit code 9) and is replaced"]


def test_a_pair_over_which_two_workers_die_is_unscored_and_the_others_are_scored(workers: FakeWorkers) -> None:
    with MathVerifier(num_workers=1) as verifier:
        assert verifier.score(pairs("dies", "answers", "dies")) == [DIED, RIGHT, DIED]
    assert workers.tries["dies"] == 4


def test_a_pair_may_hang_after_its_worker_died(workers: FakeWorkers) -> None:
    with MathVerifier(num_workers=1) as verifier:
        assert verifier.score(pairs("dies then hangs", "answers")) == [LATE, RIGHT]


@pytest.mark.parametrize("end", ["answers and dies", "answers and hangs up"])
def test_a_worker_that_died_idle_is_replaced(workers: FakeWorkers, end: str) -> None:
    with MathVerifier(num_workers=1) as verifier:
        assert verifier.score(pairs(end)) == [RIGHT]
        workers.started[0].thread.join(5)
        assert verifier.score(pairs("answers", "answers")) == [RIGHT, RIGHT]
        assert len(workers.started) == 2


def test_two_workers_in_a_row_that_cannot_start_are_an_error(workers: FakeWorkers) -> None:
    with MathVerifier(num_workers=1) as verifier:
        message = "^two math-verify workers died before they started; their errors are above$"
        with pytest.raises(RuntimeError, match=message):
            verifier.score(pairs("fails to start", "answers"))
        assert len(workers.started) == 2
        assert all(worker.killed for worker in workers.started)


def test_a_start_that_fails_now_and_then_is_none(workers: FakeWorkers) -> None:
    with MathVerifier(num_workers=1) as verifier:
        verdicts = verifier.score(pairs("fails to start then dies", "answers", "dies then fails to start", "answers"))
    assert verdicts == [DIED, RIGHT, DIED, RIGHT]


def test_what_is_under_way_at_an_error_answers_nobody(workers: FakeWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with MathVerifier(num_workers=2) as verifier:
        with monkeypatch.context() as patch:
            patch.setattr(math_equivalence, "wait", interrupted)
            with pytest.raises(KeyboardInterrupt):
                verifier.score(pairs("answers", "hangs"))
        assert all(worker.killed for worker in workers.started)
        assert verifier.score(pairs("dies", "answers")) == [DIED, RIGHT]


@pytest.mark.parametrize(
    ("num_workers", "time_limit", "message"),
    [
        (0, 1.0, "math-verify needs a worker: expected num_workers >= 1, got 0; try 2"),
        (1, 0.0, "math-verify needs time: expected time_limit > 0 seconds, got 0.0; try 10"),
        (1, float("nan"), "math-verify needs time: expected time_limit > 0 seconds, got nan; try 10"),
    ],
)
def test_impossible_settings_are_refused(num_workers: int, time_limit: float, message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        MathVerifier(num_workers, time_limit)


def test_a_worker_limits_itself_and_is_watched_over_each_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order matters: what loads math-verify is outside the limits, and "begun" is said before the work."""
    events: list[Any] = []

    def note(name: str, result: object = None) -> Callable[..., Any]:
        def call(*args: object, **kwargs: object) -> object:
            events.append((name, *args, *kwargs.values()))
            return result

        return call

    ours, theirs = Pipe()
    for pair in (("2", "$2$"), ("3", "$4$")):
        ours.send(pair)
    monkeypatch.setattr(math_equivalence, "_limit_memory", note("limit"))
    monkeypatch.setattr(math_equivalence, "compare", note("compare", RIGHT))
    monkeypatch.setattr(faulthandler, "dump_traceback_later", note("watch"))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", note("watch no more"))
    connection = SimpleNamespace(recv=lambda: theirs.recv() if theirs.poll() else eof(), send=note("send"))

    def eof() -> None:
        raise EOFError

    math_equivalence._serve(connection, 7)  # type: ignore[arg-type]
    work = [("send", None), ("watch", 14, True)], [("watch no more",), ("send", RIGHT)]
    assert events == [
        *(("compare", "1", "$1$"), ("limit",)),
        *(*work[0], ("compare", "2", "$2$"), *work[1]),
        *(*work[0], ("compare", "3", "$4$"), *work[1]),
    ]
    assert logging.getLogger("math_verify").level == logging.ERROR
    assert logging.getLogger().level < logging.ERROR


@pytest.mark.parametrize(
    ("platform", "hard", "expected"),
    [
        ("linux", -1, [(2**30, -1)]),
        ("linux", 2**31, [(2**30, 2**31)]),
        ("linux", 2**29, [(2**29, 2**29)]),
        ("darwin", -1, []),
    ],
)
def test_memory_is_limited_to_a_gibibyte_or_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, platform: str, hard: int, expected: list[tuple[int, int]]
) -> None:
    resource = pytest.importorskip("resource", reason="there are no such limits on Windows")
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.setattr(resource, "RLIM_INFINITY", -1)
    monkeypatch.setattr(resource, "getrlimit", {resource.RLIMIT_AS: (-1, hard)}.__getitem__)
    monkeypatch.setattr(resource, "setrlimit", lambda which, pair: limits.append(pair))
    math_equivalence._limit_memory()
    assert limits == expected


@pytest.mark.parametrize(
    ("gold", "completion", "is_right", "prediction"),
    [
        (r"\text{Evelyn}", r"It is \boxed{\text{Evelyn}}.", True, r"\text{Evelyn}"),
        (r"\text{Evelyn}", r"It is \boxed{\text{Angela}}.", False, r"\text{Angela}"),
        (r"\frac{7}{2}", "so $3½$", True, "(3+1/2)"),
        ("1'234", "$1234$", True, "1234"),
        (r"\frac{1}{3}", r"$0.\overline{3}$", True, "(1/3)"),
        ("0", r"$0.\overline{3}$", False, "(1/3)"),
        ("5", "–5", False, "-5"),
        ("3", "nothing here", False, None),
    ],
)
def test_gold_and_completion_are_read_as_latex_with_plain_numbers(
    gold: str, completion: str, is_right: bool, prediction: str | None
) -> None:
    """In a thread, where math-verify's own time limits would be an error."""
    with ThreadPoolExecutor(1) as threads:
        verdict = threads.submit(compare, gold, completion).result()
    assert verdict == Equivalence(is_correct=is_right, unscored=False, timed_out=False, prediction=prediction)
