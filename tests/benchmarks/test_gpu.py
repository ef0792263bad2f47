"""The script's steps: each is a command that parses, a failing one holds up none, and all run at tiny sizes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

import pytest

from reft_math.commands.parser import parse

ROOT = Path(__file__).resolve().parents[2]
STEPS = {"train", "train-large", "decode-static", "decode-8", "decode-1", "decode-64", "largest"}
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


def run(folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    line = ["bash", "benchmarks/gpu.sh", str(folder)]
    return subprocess.run(line, env={**os.environ, **settings}, cwd=ROOT, capture_output=True, text=True, check=False)


def test_steps_parse_and_a_failing_one_holds_up_none(command: Callable[[str], ModuleType], tmp_path: Path) -> None:
    """In place of an interpreter a script writes its arguments down, and refuses one step."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\ncase "$*" in *static*) echo no memory >&2; exit 3;; esac\n')
    python.chmod(0o700)
    done = run(tmp_path / "out", PYTHON=str(python), DATA="data")
    assert done.returncode == 1, done.stderr
    assert {path.stem for path in (tmp_path / "out").glob("*.log")} == STEPS
    for step in STEPS:
        script, *arguments = (tmp_path / "out" / f"{step}.txt").read_text().split()
        options = parse(get_type_hints(command(script).main)["options"], None, arguments)
        assert options.json == str(tmp_path / "out" / f"{step}.json")
        assert (options.shape, options.dtype) == ("llama-3-70b" if step == "largest" else "llama-3-8b", "bfloat16")
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert "== decode-static: exit 3" in summary
    assert "no memory" in summary
    assert "1 steps failed" in summary


def test_limits_are_eight_minutes_in_all() -> None:
    """One step is in a loop over three sizes."""
    text = (ROOT / "benchmarks" / "gpu.sh").read_text(encoding="utf-8")
    limits = re.findall(r"^( *)(?:[A-Z_]+=\S+ )?step [^ ]+ (\d+) ", text, re.MULTILINE)
    assert len(limits) == 5
    assert sum(int(limit) * (3 if indent else 1) for indent, limit in limits) <= 480
