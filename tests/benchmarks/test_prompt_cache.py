"""What the benchmark computes, and that it runs; its figures are not tested."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


def test_a_small_run_divides_seconds_by_epochs(
    command: Callable[[str], ModuleType], tiny_base: str, tmp_path: Path
) -> None:
    benchmark = command("benchmarks/prompt_cache.py")
    path = tmp_path / "found.json"
    benchmark.main(
        benchmark.PromptCacheOptions(
            model=tiny_base, dataset="arithmetic", train_size=6, batch_size=4, rounds=1, json=str(path)
        )
    )
    report = json.loads(path.read_text())
    ((every, once),) = report["seconds"]
    assert len(every) == len(once) == 3
    assert report["saved"]["first epoch"]["median"] == pytest.approx(every[0] / once[0])
    assert report["saved"]["later epochs"]["median"] == pytest.approx(sum(every[1:]) / sum(once[1:]))
    assert report["saved"]["all epochs"]["median"] == pytest.approx(sum(every) / sum(once))
