from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path


def test_a_small_run_writes_every_ratio(call: Callable[[str], None], tmp_path: Path) -> None:
    call(
        "benchmarks/train.py --dataset arithmetic --hidden-size 64 --layers 2 --vocabulary 300 --batch-size 2"
        f" --steps 1 --rounds 1 --json {tmp_path}/train.json"
    )
    report = json.loads((tmp_path / "train.json").read_text())
    for peer in ("padded512", "pyreft", "lora", "limit"):
        assert report[f"vs_{peer}"] > 0
        assert report[f"memory_vs_{peer}"] > 0
