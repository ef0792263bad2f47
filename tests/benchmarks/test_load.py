"""What the benchmark computes, and that it runs; its figures are not tested."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


def test_ratios_are_taken_within_rounds(command: Callable[[str], ModuleType]) -> None:
    rounds = [{"python": slow, "import pyreft": 4 * slow} for slow in (1.0, 10.0, 2.0)]
    found = command("benchmarks/load.py").ratios(rounds, "python")
    assert found["import pyreft"] == {"median": 4.0, "lower_quartile": 4.0, "upper_quartile": 4.0}


def test_a_small_run_names_the_slowest(
    call: Callable[[str], None],
    command: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    benchmark = command("benchmarks/load.py")
    monkeypatch.setattr(benchmark, "IMPORTS", ("json",))
    monkeypatch.setattr(benchmark, "PEERS", {"vs_json": "import json"})
    options = benchmark.LoadOptions(only=["train/lora.py"], rounds=1, json=str(tmp_path / "load.json"))
    benchmark.main(options)
    report = json.loads((tmp_path / "load.json").read_text())
    assert report["slowest_help"] == "train/lora.py --help"
    assert report["slowest_help_seconds"] == report["seconds"]["train/lora.py --help"]["median"] > 0
    with pytest.raises(SystemExit):
        call("benchmarks/load.py --only train/nosuch.py")
