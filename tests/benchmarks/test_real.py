"""What the benchmark computes, and that it runs; its figures are not tested."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture
def benchmark(command: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = command("benchmarks/real.py")
    monkeypatch.setattr(module, "matrix_peak", lambda dtype: 1e12)  # seconds of large products
    return module


def test_a_small_run_measures_every_part(benchmark: ModuleType, tiny_base: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "real.json"
    benchmark.main(
        benchmark.RealOptions(
            model=tiny_base,
            dataset="arithmetic",
            batch_size=2,
            steps=1,
            problems=2,
            max_new_tokens=6,
            rounds=1,
            json=str(path),
        )
    )
    report = json.loads(path.read_text())
    for part in ("train", "calibrate", "evaluate"):
        seconds = report[part]["seconds"]
        ratio = seconds["ours"]["median"] / seconds["peer"]["median"]
        assert report[part]["ours_vs_peer"]["median"] == pytest.approx(ratio)
        assert all(0 < share < 1 for share in report[part]["share_of_matrix_peak"].values())
    assert report["gate"].startswith("kl:")
    assert 0 < report["training_peak_bytes"]["ours"] < report["training_peak_bytes"]["peer"]


def test_shares_are_operations_a_second_over_the_peak(benchmark: ModuleType) -> None:
    """By hand: a product of 2 · 10³ operations in two seconds, of a thousand a second; half of the peer's time."""
    square = torch.ones(10, 10)

    def part(seconds: float, tokens: int) -> tuple[float, int]:
        square @ square
        return seconds, tokens

    found = benchmark.measure({"ours": lambda: part(2.0, 6), "peer": lambda: part(4.0, 6)}, rounds=2, peak=1000.0)
    assert found["share_of_matrix_peak"] == {"ours": 1.0, "peer": 0.5}
    assert found["tokens_a_second"] == {"ours": 3.0, "peer": 1.5}
    assert found["ours_vs_peer"]["median"] == 0.5
