"""An evaluation over two processes, either of which may die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from reft_math.scoring.records import RecordFile

ROOT = Path(__file__).resolve().parents[2]
LINE = "eval/arithmetic.py --limit 60 --batch-size 2 --samples 2 --temperature 0.8 --seed 5"


def start(folder: Path, *extra: str) -> subprocess.Popen[bytes]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29519"]
    return subprocess.Popen(
        [*launcher, *LINE.split(), "--output-dir", str(folder), *extra],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def recorded(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (folder / "records").glob("*.jsonl"))


def kill_a_worker(run: subprocess.Popen[bytes], rank: int, folder: Path, at: int) -> None:
    """SIGKILLs one process once ``at`` rows are on disk; the launcher takes the other down."""
    while recorded(folder) < at:
        assert run.poll() is None
        time.sleep(0.01)
    for worker in psutil.Process(run.pid).children():
        if worker.environ().get("RANK") == str(rank):
            worker.kill()
    assert run.wait(timeout=120) != 0


def test_whichever_process_dies_no_row_is_lost_or_counted_twice(call: Callable[[str], None], tmp_path: Path) -> None:
    """Killed twice and resumed, the samples are those of a run in peace by one process, and each is there once."""
    folder = tmp_path / "killed"
    kill_a_worker(start(folder), rank=1, folder=folder, at=10)
    before = recorded(folder)
    assert 10 <= before < 110
    assert list((folder / "records").glob("*.shard-*")), "the rows of the stopped run are in its shards"
    kill_a_worker(start(folder, "--resume"), rank=0, folder=folder, at=before + 10)
    assert recorded(folder) < 120
    assert start(folder, "--resume").wait(timeout=300) == 0

    call(f"{LINE} --output-dir {tmp_path}/alone")
    alone, killed = (RecordFile(tmp_path / run / "records" / "base.jsonl").done for run in ("alone", "killed"))
    assert len(killed) == 120
    assert killed == alone
    assert not list((folder / "records").glob("*.shard-*"))
    results = [json.loads((tmp_path / run / "results.json").read_text()) for run in ("alone", "killed")]
    assert results[0]["evaluation"] == results[1]["evaluation"]
    assert results[0]["evaluation"]["base"]["samples"] == 2
