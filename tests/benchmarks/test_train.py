"""What the benchmark computes from its clocks, and that it runs; its figures are not tested."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 170,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "vocab_size": 400,
}
TINY = {"dataset": "arithmetic", "k": 4}


@pytest.fixture
def benchmark(command: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = command("benchmarks/train.py")
    monkeypatch.setitem(module.SHAPES, "small", SHAPE)
    monkeypatch.setattr(module, "PADDED", 192)
    monkeypatch.setattr(module, "matrix_peak", lambda dtype: 1e12)  # seconds of large products
    return module


def test_ratios_are_taken_within_rounds(benchmark: ModuleType) -> None:
    """A round in which the machine was slow for all is like any other."""
    rounds = [{"ours": slow, **dict.fromkeys(benchmark.PEERS, 3 * slow)} for slow in (1.0, 10.0, 2.0)]
    for ratio in benchmark.speed_ratios(rounds).values():
        assert ratio == {"median": 3.0, "lower_quartile": 3.0, "upper_quartile": 3.0}


@pytest.mark.parametrize("intervention", ["red", "loreft"])
def test_a_small_run_writes_every_ratio(benchmark: ModuleType, tmp_path: Path, intervention: str) -> None:
    path = tmp_path / "new" / "train.json"
    options = benchmark.TrainBenchmarkOptions(
        **TINY, intervention=intervention, batch_size=4, steps=2, rounds=1, json=str(path)
    )
    benchmark.main(options)
    report = json.loads(path.read_text())
    for name in benchmark.PEERS:
        assert report[f"vs_{name}"] == report["ratios"][name]["median"] > 0
        assert report[f"memory_vs_{name}"] == report["peak_bytes"]["ours"] / report["peak_bytes"][name]
    assert report["mean_solution_tokens"] > TINY["k"]
    assert 0 < report["share_of_matrix_peak"] < 1


def test_contenders_train_what_they_say(benchmark: ModuleType) -> None:
    """Each row's labels are its solution, or the first K tokens of it; padding is none."""
    contenders = benchmark.Contenders(benchmark.TrainBenchmarkOptions(**TINY, batch_size=4, steps=1))
    rows = contenders.solutions.rows
    for k, length in ((None, None), (4, benchmark.PADDED)):
        batch = contenders._labelled(rows, k, length)
        for i, row in enumerate(rows):
            labels = batch["labels"][i]
            assert labels[labels >= 0].tolist() == row["target_ids"][:k]
            whole = row["prompt_ids"] + row["target_ids"]
            assert batch["input_ids"][i][batch["attention_mask"][i].bool()].tolist() == whole
        assert length is None or batch["input_ids"].shape[1] == length
    before = [weight.clone() for weight in contenders.base.parameters()]
    for name in ("ours", "padded512", "pyreft", "lora"):
        contenders.seconds(name, steps=1)
    assert all(torch.equal(weight, old) for weight, old in zip(contenders.base.parameters(), before, strict=True))
