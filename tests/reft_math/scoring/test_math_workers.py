"""Real workers, killed in real time, and what they make of MATH500's solutions."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from unittest import mock

import pytest

from reft_math.errors import UserError
from reft_math.scoring import math_server
from reft_math.scoring.math_equivalence import Equivalence, MathVerifier

MATH500 = Path(__file__).resolve().parents[4] / "shared" / "data" / "math500" / "test.jsonl"
HANGING = ("1", "$9^{9^{9^9}}$")
LATE = Equivalence(is_correct=False, unscored=True, timed_out=True, prediction=None)

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    with MathVerifier(num_workers=2, time_limit=60) as verifier:
        yield verifier


def is_correct(verdicts: list[Equivalence]) -> list[bool]:
    return [verdict.is_correct for verdict in verdicts]


def processes_of(group: int) -> list[int]:
    """The group's processes, the first one first."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(path.parent.name))
    return sorted(found)


def assert_they_end(group: int) -> None:
    deadline = time.monotonic() + 20
    while processes_of(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(group) == []


def test_verdicts_come_in_order_and_workers_serve_again(verifier: MathVerifier) -> None:
    golds = [r"\frac{1}{2}", "3", "(1,2)", "x+1", "5", "3"]
    completions = ["so $0.5$", r"\boxed{4}", r"\boxed{(1,2)}", "$1+x$", "15 \ud800\n", "nothing here"]
    pairs = list(zip(golds, completions, strict=True))
    verdicts = verifier.score(pairs)
    assert is_correct(verdicts) == [True, False, True, True, False, False]
    assert not any(verdict.timed_out for verdict in verdicts)
    assert [verdict.prediction for verdict in verdicts[1::4]] == ["4", None]
    server = verifier._server
    assert verifier.score(pairs[::-1]) == verdicts[::-1]
    assert verifier.score([]) == []
    assert verifier._server is server


@pytest.mark.skipif(not MATH500.exists(), reason=f"needs {MATH500}")
def test_every_math500_solution_is_right_for_its_gold_and_wrong_for_another(verifier: MathVerifier) -> None:
    rows = [json.loads(line) for line in MATH500.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 500
    numbers = [row for row in rows if row["answer"].isdigit()]
    assert len(numbers) > 200
    verdicts = verifier.score([(row["answer"], row["solution"]) for row in rows])
    others = verifier.score([(str(int(row["answer"]) + 1), row["solution"]) for row in numbers])
    assert [row["unique_id"] for row, verdict in zip(rows, verdicts, strict=True) if not verdict.is_correct] == []
    assert not any(is_correct(others))


@pytest.mark.slow
def test_a_hanging_pair_is_killed_and_the_others_scored() -> None:
    with MathVerifier(num_workers=2, time_limit=2) as verifier:
        verdicts = verifier.score([HANGING, ("2", "$2$"), HANGING, ("5", r"\boxed{5}")])
    assert verdicts[::2] == [LATE, LATE]
    assert is_correct(verdicts) == [False, True, False, True]


@linux
def test_workers_are_limited_in_memory(verifier: MathVerifier) -> None:
    verifier.score([("1", "$1$")])
    assert verifier._server is not None
    limits = [Path(f"/proc/{process}/limits").read_text() for process in processes_of(verifier._server.pid)]
    assert len([each for each in limits if re.search(r"address space +[0-9]{10} ", each)]) == 2


def _score_in_a_pool(pair: tuple[str, str]) -> tuple[bool, bool]:
    assert _SHARED is not None
    return multiprocessing.current_process().daemon, _SHARED.score([pair])[0].is_correct


_SHARED: MathVerifier | None = None


def test_daemonic_copies_of_a_process_have_processes_of_their_own(verifier: MathVerifier) -> None:
    """As in a reward function: daemonic processes may have no children of multiprocessing's."""
    global _SHARED
    _SHARED = verifier
    assert is_correct(verifier.score([("1", "$1$")])) == [True]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.map(_score_in_a_pool, [("1", "$1$"), ("2", "$3$")]) == [(True, True), (True, False)]
    assert is_correct(verifier.score([("1", "$1$")])) == [True]


@linux
def test_killed_workers_are_replaced(verifier: MathVerifier) -> None:
    """Idle ones, for which pebble gives up: all is started again."""
    verifier.score([("1", "$1$")])
    assert verifier._server is not None
    for process in processes_of(verifier._server.pid)[1:]:
        os.kill(process, signal.SIGKILL)
    assert is_correct(verifier.score([("7", "$7$"), ("2", "$3$")])) == [True, False]


def test_a_pair_that_is_lost_with_its_pool_is_not_waited_for() -> None:
    """It was in the queue, where pebble gives no task up."""
    pool = mock.Mock(active=False, schedule=lambda *_, **__: Future())
    with pytest.raises(RuntimeError, match="lost with its pool"):
        math_server._judge(pool, 10.0, ("1", "$1$"))


@linux
def test_ctrl_c_ends_all_at_once(verifier: MathVerifier) -> None:
    verifier.score([("1", "$1$")])
    assert verifier._server is not None
    group = verifier._server.pid
    interrupt = threading.Timer(0.5, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            verifier.score([HANGING] * 4)
    finally:
        signal.signal(signal.SIGINT, before)
    assert_they_end(group)


def test_a_process_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sympy.py").write_text("raise ImportError('no sympy')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with MathVerifier(num_workers=1) as verifier, pytest.raises(UserError, match="math-verify needs a process of its"):
        verifier.score([("1", "$1$")])


@linux
def test_a_killed_script_leaves_no_process(tmp_path: Path) -> None:
    """A script without a guard, which multiprocessing would run again; it is killed over a pair that hangs."""
    script = tmp_path / "run.py"
    script.write_text(
        "from reft_math.scoring.math_equivalence import MathVerifier\n"
        "verifier = MathVerifier(num_workers=1, time_limit=100)\n"
        "verifier.score([('1', '$1$')])\n"
        "print(verifier._server.pid, flush=True)\n"
        f"verifier.score([{HANGING!r}])\n"
    )
    run = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert run.stdout is not None
    group = int(run.stdout.readline())
    time.sleep(0.5)
    assert len(processes_of(group)) > 1
    run.kill()
    run.communicate()
    assert_they_end(group)


@pytest.mark.parametrize(("hard", "limit"), [(-1, 4096 + 2**30), (2**20, 2**20)])
def test_memory_is_limited_to_a_gibibyte_more_or_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, hard: int, limit: int
) -> None:
    resource = pytest.importorskip("resource", reason="there are no such limits on Windows")
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(Path, "read_text", lambda path: "1 2 3" if str(path) == "/proc/self/statm" else "")
    monkeypatch.setattr(resource, "getpagesize", lambda: 4096)
    monkeypatch.setattr(resource, "RLIM_INFINITY", -1)
    monkeypatch.setattr(resource, "getrlimit", {resource.RLIMIT_AS: (-1, hard)}.__getitem__)
    monkeypatch.setattr(resource, "setrlimit", lambda which, pair: limits.append(pair))
    math_server._limit_memory()
    assert limits == [(limit, hard)]


def test_scoring_needs_no_torch() -> None:
    code = (
        "import sys, reft_math.scoring.math_server; from reft_math.scoring.math_equivalence import compare; "
        "assert 'math_verify' not in sys.modules; assert compare('1', '$1$').is_correct; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
