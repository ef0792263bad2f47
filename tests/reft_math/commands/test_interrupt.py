"""Ctrl-C, and a launcher that is killed, on commands that are processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

COMMAND = """
import ctypes, os, subprocess, sys, time
from dataclasses import dataclass, field
from multiprocessing import Process
from reft_math.commands.run import run

@dataclass(frozen=True)
class Options:
    output_dir: str = field(default="none", metadata={"help": "Folder."})
    resume: bool = field(default=False, metadata={"help": "Go on."})
    overwrite: bool = field(default=False, metadata={"help": "Start anew."})

def wait_in_c():
    "As in a backward pass, or for another process: no signal ends the call."
    library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)

def main(options):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    print(child.pid, flush=True)
    {work}

run(main, Options, None)
"""


def start(work: str, handler: signal.Handlers = signal.SIG_DFL) -> subprocess.Popen[str]:
    # A shell starts what it puts in the background deaf to Ctrl-C, and children inherit that.
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND.replace("{work}", work)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RANK": "0"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, handler),
    )


@pytest.mark.parametrize(
    ("work", "number"),
    [("wait_in_c()", signal.SIGINT), ("time.sleep(600)", signal.SIGINT), ("wait_in_c()", signal.SIGTERM)],
)
def test_a_signal_ends_whatever_is_at_work_with_its_children_in_one_line(work: str, number: signal.Signals) -> None:
    command = start(work)
    assert command.stdout is not None
    child = psutil.Process(int(command.stdout.readline()))
    time.sleep(0.2)
    command.send_signal(number)
    _, err = command.communicate(timeout=10)
    assert command.returncode == 128 + number
    assert err == "\nstopped; to go on, run the same command with --resume\n"
    child.wait(timeout=10)


def test_a_signal_to_a_forked_process_is_its_own() -> None:
    """As a pool sends it to its workers."""
    code = "fork = os.fork(); fork or time.sleep(600); time.sleep(0.2); os.kill(fork, 15); child.kill()"
    command = start(f"{code}; print(os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]))")
    assert command.stdout is not None
    command.stdout.readline()
    out, err = command.communicate(timeout=60)
    assert out == "-15\n"
    assert "stopped" not in err  # Python 3.12 and later warn of the fork


def test_a_command_that_is_told_to_ignore_ctrl_c_goes_on() -> None:
    command = start("time.sleep(0.5); child.kill(); print('done')", signal.SIG_IGN)
    assert command.stdout is not None
    command.stdout.readline()
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=60)
    assert (command.returncode, out, err) == (0, "done\n", "")


LAUNCHER = """
import os, subprocess, sys
names = {name: value.format(launcher=os.getpid()) for name, value in (pair.split("=") for pair in sys.argv[2:])}
subprocess.Popen([sys.executable, "-c", sys.argv[1]], env={**os.environ, **names}).wait()
"""
WORKER = """
import os, subprocess, sys, time
from reft_math.commands import interrupt
interrupt._LOOK_S = 0.05
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
interrupt.end_with_parent(lambda: "over")
print(os.getpid(), child.pid, interrupt.PARENT in os.environ, flush=True)
child.wait()
"""


@pytest.mark.parametrize(
    "place",
    [
        "TORCHELASTIC_RUN_ID=none",
        "REFT_MATH_PARENT={launcher}",
        "REFT_MATH_PARENT=1",  # it was gone before anybody looked
    ],
)
def test_a_worker_ends_with_its_launcher_and_says_so(place: str) -> None:
    launcher = start_launcher(place)
    assert launcher.stdout is not None
    *_, is_inherited = launcher.stdout.readline().split() or ["False"]
    launcher.kill()
    _, err = launcher.communicate(timeout=10)  # comes back when worker and child have let go of it
    assert err == "over"
    assert is_inherited == "False"


def test_a_command_stays_when_its_shell_goes() -> None:
    launcher = start_launcher("SHLVL=2")
    assert launcher.stdout is not None
    worker, child, _ = launcher.stdout.readline().split()
    launcher.kill()
    time.sleep(0.2)
    for pid in (worker, child):
        psutil.Process(int(pid)).kill()
    assert launcher.communicate(timeout=10)[1] == ""


def start_launcher(place: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, WORKER, place], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
