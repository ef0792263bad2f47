"""Two runs never write to one folder: what holds it is another process, and whatever ends that lets go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from reft_math.holding import hold, release

pytest.importorskip("fcntl", reason="Windows locks no folders")
HOLDER = """
import pathlib, sys, time
from reft_math.holding import hold
print(hold(pathlib.Path(sys.argv[1])), flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def let_go() -> Iterator[None]:
    yield
    release()


def test_a_folder_is_one_process_until_that_is_killed(tmp_path: Path) -> None:
    (link := tmp_path / "link").symlink_to(tmp_path)
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "True\n"
            assert not hold(tmp_path)
            assert not hold(link)
            assert hold(tmp_path.parent)
        finally:
            other.send_signal(signal.SIGKILL)
    assert hold(tmp_path)
    assert os.listdir(tmp_path) == ["link"]


def test_what_a_process_holds_it_may_ask_for_again_until_it_lets_go(tmp_path: Path) -> None:
    assert hold(tmp_path)
    assert hold(tmp_path)
    asked = [sys.executable, "-c", HOLDER.replace("time.sleep(60)", ""), str(tmp_path)]
    assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout == "False\n"
    release()
    assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout == "True\n"


def test_where_folders_cannot_be_locked_all_are_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert hold(tmp_path)
