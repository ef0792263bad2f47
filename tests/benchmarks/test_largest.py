"""What the benchmark computes, and that it runs; its figures are not tested."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from reft_math.errors import UserError


@pytest.fixture
def benchmark(command: Callable[[str], ModuleType]) -> ModuleType:
    return command("benchmarks/largest.py")


def test_as_many_layers_train_as_fit(benchmark: ModuleType, tmp_path: Path) -> None:
    """What the rule finds is measured within the memory, and one layer more is not."""
    path = tmp_path / "new" / "largest.json"
    options = benchmark.LargestOptions(shape="tiny", memory=0.004, k=3, prompt_length=5, batch_size=2, json=str(path))
    benchmark.main(options)
    found = json.loads(path.read_text())
    assert found["layers"] > 4
    assert found["peak_bytes"] <= found["memory_bytes"] == int(0.004 * 2**30)
    assert benchmark.step(options, found["layers"] + 1)["peak_bytes"] > found["memory_bytes"]
    assert found["seconds_a_step"] > 0


def test_fewer_layers_are_tried_where_memory_ends_early(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 bytes and 10 a layer within 1,000, on a GPU whose allocator gives no more from 85 layers on."""
    tried = []

    def step(options: Any, layers: int, is_timed: bool = False) -> dict[str, Any]:
        tried.append(layers)
        if layers >= 85:
            raise torch.OutOfMemoryError
        return {"layers": layers, "peak_bytes": 100 + 10 * layers}

    monkeypatch.setattr(benchmark, "step", step)
    assert benchmark.largest(benchmark.LargestOptions(), 1000)["layers"] == 82
    assert tried == [2, 4, 90, 86, 82]
    with pytest.raises(UserError, match="one layer of small must fit"):
        benchmark.largest(benchmark.LargestOptions(), 50)


def test_without_a_gpu_memory_is_asked_for(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="pass --memory"):
        benchmark.free_bytes(benchmark.LargestOptions())
