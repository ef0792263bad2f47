"""That the benchmark runs and compares; its figures are not tested."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from reft_math.models import load_model
from reft_math.models.adapter import get_prefix_reft_model
from reft_math.models.config import PrefixReftConfig


def test_a_sweep_completes_as_each_gate_does(
    call: Callable[[str], None], tmp_path: Path, tiny_base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = PrefixReftConfig(site="ffn_up", base_model=tiny_base, template="chat/1")
    model = get_prefix_reft_model(load_model(tiny_base), config)
    for bias in model.biases().values():
        bias.data.fill_(0.3)
    model.save_pretrained(tmp_path / "adapter")
    line = f"benchmarks/calibrate.py --adapter {tmp_path}/adapter --limit 3 --rounds 1 --max-new-tokens 8"
    call(f"{line} --json {tmp_path}/report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["completions"], report["differing"]) == (7 * 3, 0)
    assert "0 of 21 completions differ" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        call("benchmarks/calibrate.py")
