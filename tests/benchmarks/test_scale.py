"""What the benchmark computes from its clocks, and that it runs; its figures are not tested."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 400,
}


@pytest.fixture
def benchmark(command: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = command("benchmarks/scale.py")
    monkeypatch.setitem(module.SHAPES, "small", TINY)
    monkeypatch.setattr(module, "LADDERS", {"k": (2, 4), "layers": (1, 2)})
    return module


def test_the_slope_is_the_exponent(benchmark: ModuleType) -> None:
    assert benchmark.slope((1, 2, 4), (3.0, 12.0, 48.0)) == pytest.approx(2)
    assert benchmark.slope((8, 16), (5.0, 5.0)) == pytest.approx(0)


def test_operations_are_those_of_the_formula(benchmark: ModuleType) -> None:
    """Two for each weight and token forward, two backward (weights are frozen), logits at targets alone.

    In the lowest layer gradients end at its MLP's product, so that only its last matrix has a backward pass; attention
    within lines is quadratic and small here, hence a bound above.
    """
    start = replace(benchmark.setting_of(benchmark.ScaleOptions()), batch_size=1, prompt_length=5, k=4)
    hidden, inner, tokens = TINY["hidden_size"], TINY["intermediate_size"], 5 + 4 - 1
    attention, matrix = 4 * hidden * hidden, hidden * inner
    forward = 2 * (attention + 3 * matrix)
    backward = attention + 3 * matrix + matrix
    logits = 2 * 4 * hidden * TINY["vocab_size"]
    products = 2 * (tokens * (forward + backward) + logits)
    within_lines = 2 * 7 * 2 * tokens**2 * hidden
    assert products < start.counted() <= products + within_lines
    assert replace(start, layers=1).counted() < start.counted()


def test_a_small_run_climbs_every_ladder(benchmark: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "new" / "scale.json"
    options = benchmark.ScaleOptions(batch_size=2, prompt_length=6, steps=1, rounds=1, json=str(path))
    benchmark.main(options)
    report = json.loads(path.read_text())
    assert report["ladders"].keys() == {"k", "layers"}
    for figures in report["ladders"].values():
        assert all(cost["median"] > 0 for cost in figures["seconds"])
        assert figures["counted_slope"] > 0


def test_processes_report_their_step(benchmark: ModuleType) -> None:
    """One, started anew, so at the real shape."""
    options = benchmark.ScaleOptions(batch_size=1, prompt_length=4, k=2, steps=1)
    assert benchmark.seconds_of_processes(1, options) > 0
