"""The comparison of gates inside vLLM with decoding here, on a vLLM that is none; `.ci/engines` starts the real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_vllm
import pytest

LIMIT = 3


@pytest.fixture
def benchmark(command: Callable[[str], ModuleType]) -> ModuleType:
    return command("benchmarks/vllm_gate.py")


@pytest.fixture
def here(benchmark: ModuleType) -> Any:
    return benchmark.make_here(benchmark.VllmGateOptions(limit=LIMIT, sampled=2, max_new_tokens=12))


@pytest.fixture
def llm(here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    server = fake_vllm.Server(here.base, here.adapters, here.tokenizer)
    server.model_config.max_model_len = 256
    fake_vllm.install(server, monkeypatch)
    for name, adapter in here.adapters.items():
        adapter.save_pretrained(tmp_path / name)
    from reft_math.engines.vllm.offline import ReftLLM

    return ReftLLM("base", {name: tmp_path / name for name in here.adapters})


def test_an_engine_that_does_the_same_is_equal_in_every_row(benchmark: ModuleType, here: Any, llm: Any) -> None:
    rows = benchmark.compare_greedy(here, llm)
    assert [row["adapter"] for row in rows] == [None, *["red"] * 3, *["loreft"] * 3]
    for row in rows:
        assert (row["completions"], row["equal"], row["same_closing"]) == (LIMIT, LIMIT, LIMIT)
        assert row["kl_apart"] < 1e-4
    sampled = benchmark.compare_samples(here, llm)
    assert (sampled["completions"], sampled["equal"]) == (2, 2)


def test_an_engine_that_leaves_an_adapter_out_is_found(benchmark: ModuleType, here: Any, llm: Any) -> None:
    llm.server.adapters = {**here.adapters, "loreft": here.adapters["red"]}
    rows = benchmark.compare_greedy(here, llm)
    assert all(row["equal"] == LIMIT for row in rows if row["adapter"] != "loreft")
    assert any(row["different"] for row in rows if row["adapter"] == "loreft")
    assert all(gap > 0 for row in rows for gap in row["different"].values())
