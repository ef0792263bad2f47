"""Two runs never write to one folder: what holds it is another process, and whatever ends that lets go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reft_math.files.lock import hold, release

HOLDER = """
import pathlib, sys, time
from reft_math.files.lock import hold
print(hold(pathlib.Path(sys.argv[1])), flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def let_go() -> Iterator[None]:
    yield
    release()


def test_a_folder_is_one_process_until_that_is_killed(tmp_path: Path) -> None:
    (folder := tmp_path / "run").mkdir()
    (link := tmp_path / "link").symlink_to(folder)
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "True\n"
            assert not hold(folder)
            assert not hold(link)
            assert hold(tmp_path)
        finally:
            other.send_signal(signal.SIGKILL)
    assert hold(folder)
    release()
    assert sorted(os.listdir(tmp_path)) == ["link", "run"]
    assert os.listdir(folder) == []


def test_what_a_process_holds_it_may_ask_for_again_until_it_lets_go(tmp_path: Path) -> None:
    assert hold(tmp_path)
    assert hold(tmp_path)
    asked = [sys.executable, "-c", HOLDER.replace("time.sleep(60)", ""), str(tmp_path)]
    assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout == "False\n"
    release()
    assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout == "True\n"


def test_a_folder_that_nothing_can_be_put_beside_is_free(tmp_path: Path) -> None:
    (folder := tmp_path / "run").mkdir()
    (tmp_path / "run.lock.tmp").mkdir()
    assert hold(folder)
