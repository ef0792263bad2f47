"""Ctrl-C on commands that are processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

COMMAND = """
import ctypes, subprocess, sys, time
from dataclasses import dataclass, field
from multiprocessing import Process
from reft_math.command import run

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


@pytest.mark.parametrize("work", ["wait_in_c()", "time.sleep(600)"])
def test_ctrl_c_ends_whatever_is_at_work_with_its_children_in_one_line(work: str) -> None:
    command = start(work)
    assert command.stdout is not None
    child = psutil.Process(int(command.stdout.readline()))
    time.sleep(0.2)
    command.send_signal(signal.SIGINT)
    _, err = command.communicate(timeout=10)
    assert command.returncode == 130
    assert err == "\nstopped; to go on, run the same command with --resume\n"
    child.wait(timeout=10)


def test_a_command_that_is_told_to_ignore_ctrl_c_goes_on() -> None:
    command = start("time.sleep(0.5); child.kill(); print('done')", signal.SIG_IGN)
    assert command.stdout is not None
    command.stdout.readline()
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=60)
    assert (command.returncode, out, err) == (0, "done\n", "")
