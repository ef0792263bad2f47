"""What the benchmark computes from its clocks, counts and allocations, and that it runs; its times are not tested."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

TINY: dict[str, Any] = {"hidden_size": 64, "num_layers": 2, "vocabulary": 96, "batch_size": 3, "prompt_length": 12}


@pytest.fixture
def benchmark(command: Callable[[str], ModuleType]) -> ModuleType:
    return command("benchmarks/numeric.py")


def test_time_ratios_are_taken_within_rounds(benchmark: ModuleType) -> None:
    """A round in which the machine was slow for all is like any other."""
    rounds = [{**dict.fromkeys(benchmark.PEERS, slow), "ours": 0.5 * slow} for slow in (1.0, 10.0, 2.0)]
    for ratio in benchmark.time_ratios(rounds).values():
        assert ratio == {"median": 0.5, "lower_quartile": 0.5, "upper_quartile": 0.5}


def test_a_small_run_writes_every_ratio(benchmark: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "new" / "numeric.json"
    benchmark.main(benchmark.NumericOptions(**TINY, samples=4, rounds=2, json=str(path)))
    report = json.loads(path.read_text())
    for peer in benchmark.PEERS:
        assert report[f"time_vs_{peer}"] == report["time_ratios"][peer]["median"] > 0
        assert report[f"tokens_vs_{peer}"] == report["tokens_read"]["ours"] / report["tokens_read"][peer]
        assert report[f"memory_vs_{peer}"] == report["peak_bytes"]["ours"] / report["peak_bytes"][peer] > 0
    assert report["tokens_vs_one_by_one"] <= 1 / 5
    assert report["tokens_vs_all_at_once"] <= 1 / 5
    assert report["seconds"].keys() == {"ours", *benchmark.PEERS}
    assert report["largest_difference"].keys() == {"one_by_one", "all_at_once", "shared_cache"}


def test_tokens_are_those_of_the_formulas(benchmark: ModuleType) -> None:
    """Numbers are the space, a digit, the point and a digit: 1 + 6 + 6 inner nodes, three tokens to read for each."""
    contenders = benchmark.Contenders(benchmark.NumericOptions(**TINY, samples=4))
    with torch.no_grad():
        read = {name: benchmark.tokens_read(contenders.model, run) for name, run in contenders.all().items()}
    lengths = contenders.attention_mask.sum(dim=1).tolist()
    assert lengths == [12, 9, 6]
    assert read == {
        "ours": 3 * (12 + 13),
        "one_by_one": 51 * 3 * (12 + 3),
        "all_at_once": sum(51 * (length + 3) for length in lengths),
        "shared_cache": 3 * (12 + 51 * 3),
        "sampling": 3 * (11 + 4 * 4),
    }


def test_contenders_that_disagree_give_no_figures(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    contenders = benchmark.Contenders(benchmark.NumericOptions(**TINY))
    with torch.no_grad():
        assert max(benchmark.check_agreement(contenders).values()) < 1e-3
        exact = contenders.shared_cache()
        for wrong in (exact + 0.01, exact * float("nan")):
            monkeypatch.setattr(contenders, "shared_cache", lambda wrong=wrong: wrong)
            with pytest.raises(RuntimeError, match="by shared_cache differ from ours"):
                benchmark.check_agreement(contenders)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's allocator rounds")
def test_peak_memory_is_what_is_held_together(benchmark: ModuleType) -> None:
    """Two megabytes at once and two in turn."""
    megabyte = 2**20

    def together() -> torch.Tensor:
        return torch.zeros(megabyte, dtype=torch.uint8) + torch.ones(1, dtype=torch.uint8)

    def in_turn() -> None:
        for _ in range(2):
            torch.zeros(megabyte, dtype=torch.uint8)

    assert 2 * megabyte <= benchmark.peak_bytes(together) < 2.1 * megabyte
    assert megabyte <= benchmark.peak_bytes(in_turn) < 1.1 * megabyte
