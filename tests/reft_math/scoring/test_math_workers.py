"""Real workers, killed in real time, and what they make of MATH500's solutions."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from reft_math.scoring.math_equivalence import Equivalence, MathVerifier, _deaf_to_interrupts

MATH500 = Path(__file__).resolve().parents[4] / "shared" / "data" / "math500" / "test.jsonl"
HANGING = ("1", "$9^{9^{9^9}}$")


def is_correct(verdicts: list[Equivalence]) -> list[bool]:
    return [verdict.is_correct for verdict in verdicts]


def test_verdicts_come_in_order_and_workers_serve_again() -> None:
    golds = [r"\frac{1}{2}", "3", "(1,2)", "x+1", "5", "3"]
    completions = ["so $0.5$", r"\boxed{4}", r"\boxed{(1,2)}", "$1+x$", "15", "nothing here"]
    pairs = list(zip(golds, completions, strict=True))
    with MathVerifier(num_workers=2, time_limit=60) as verifier:
        verdicts = verifier.score(pairs)
        workers = {child.pid for child in multiprocessing.active_children()}
        assert is_correct(verdicts) == [True, False, True, True, False, False]
        assert not any(verdict.timed_out for verdict in verdicts)
        assert verdicts[1].prediction == "4"
        assert verdicts[5].prediction is None
        assert verifier.score(pairs[::-1]) == verdicts[::-1]
        assert verifier.score([]) == []
        assert {child.pid for child in multiprocessing.active_children()} == workers
    assert not {child.pid for child in multiprocessing.active_children()} & workers


def test_a_worker_is_deaf_to_ctrl_c_from_its_first_moment() -> None:
    """Not from when it has imported what says so: until then it would end with a traceback."""
    code = "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with _deaf_to_interrupts():
        mask = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "SIGINT" in mask
    assert signal.SIGINT not in before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


@pytest.mark.slow
def test_a_hanging_pair_is_killed_and_the_others_scored() -> None:
    with MathVerifier(num_workers=1, time_limit=2) as verifier:
        verdicts = verifier.score([("2", "$2$"), HANGING, ("5", r"\boxed{5}")])
    assert is_correct(verdicts) == [True, False, True]
    assert verdicts[1] == Equivalence(is_correct=False, unscored=True, timed_out=True, prediction=None)


def test_a_pair_whose_worker_dies_is_scored_again() -> None:
    """The worker sleeps, so that it is killed over the pair however fast it is, and before all of it is sent."""
    with MathVerifier(num_workers=1, time_limit=120) as verifier:
        verifier.score([("1", "$1$")])
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid or 0, signal.SIGSTOP)
        killer = threading.Timer(0.2, worker.kill)
        killer.start()
        verdicts = verifier.score([("7", "$7$" + " " * 200_000), ("2", "$3$")])
        killer.join()
    assert [verdict.unscored for verdict in verdicts] == [False, False]
    assert is_correct(verdicts) == [True, False]


def test_workers_that_cannot_start_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sympy.py").write_text("raise SystemExit('no sympy')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])  # spawned processes get it
    with MathVerifier(num_workers=1) as verifier, pytest.raises(RuntimeError, match="died before they started"):
        verifier.score([("1", "$1$")])


def test_a_killed_run_leaves_no_worker_spinning(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "from reft_math.scoring.math_equivalence import MathVerifier\n"
        "if __name__ == '__main__':\n"
        "    verifier = MathVerifier(num_workers=1, time_limit=1)\n"
        "    verifier.score([('1', '$1$')])\n"
        "    print('warm', flush=True)\n"
        f"    verifier.score([{HANGING!r}] * 100)\n"
    )
    run = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert run.stdout is not None
    assert run.stdout.readline() == b"warm\n"
    time.sleep(0.5)
    run.kill()
    # The worker inherited standard output: it ends only when the worker has ended, too.
    assert run.communicate(timeout=30)[0] == b""


def test_scoring_needs_no_torch() -> None:
    code = (
        "import sys; from reft_math.scoring.math_equivalence import compare; assert 'math_verify' not in sys.modules; "
        "assert compare('1', '$1$').is_correct; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not MATH500.exists(), reason=f"needs {MATH500}")
def test_every_math500_solution_is_right_for_its_gold() -> None:
    rows = [json.loads(line) for line in MATH500.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 500
    with MathVerifier(num_workers=1, time_limit=60) as verifier:
        verdicts = verifier.score([(row["answer"], row["solution"]) for row in rows])
    assert [row["unique_id"] for row, verdict in zip(rows, verdicts, strict=True) if not verdict.is_correct] == []


@pytest.mark.skipif(not MATH500.exists(), reason=f"needs {MATH500}")
def test_math500_solutions_are_wrong_for_other_golds() -> None:
    rows = [json.loads(line) for line in MATH500.read_text(encoding="utf-8").splitlines()]
    numbers = [row for row in rows if row["answer"].isdigit()]
    with MathVerifier(num_workers=1, time_limit=60) as verifier:
        verdicts = verifier.score([(str(int(row["answer"]) + 1), row["solution"]) for row in numbers])
    assert len(numbers) > 200
    assert not any(is_correct(verdicts))
