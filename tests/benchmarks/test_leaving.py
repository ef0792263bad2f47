"""What the benchmark compares, and that it runs; its figures are not tested."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


def test_rows_that_leave_draw_what_stock_generate_draws(
    call: Callable[[str], None], tiny_base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = [2, 9, 4, 7]
    records = tmp_path / "records.jsonl"
    records.write_text("".join(json.dumps({"id": str(n), "num_tokens": n}) + "\n" for n in lengths))
    line = f"benchmarks/leaving.py --records {records} --model {tiny_base} --batch-size 2 --rounds 1"
    call(f"{line} --json {tmp_path}/report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["lengths"] == lengths
    assert [report[name]["differing"] for name in ("leaving", "leaving, twice the batch")] == [0, 0]
    # A token's forward pass leaves all tokens before it in the cache; stock's largest is that of row 2's last token.
    stock = 2 * (95 + 9 - 1)
    assert report["leaving"]["cache"] == pytest.approx(2 * (95 + 4 - 1) / stock)
    assert report["leaving, twice the batch"]["cache"] == pytest.approx(4 * (95 + 2 - 1) / stock)
    assert "0 of 4 rows differ" in capsys.readouterr().out
