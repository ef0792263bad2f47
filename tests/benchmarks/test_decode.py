"""What the benchmark computes from its clocks, and that it runs; its figures are not tested."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 64,
}


@pytest.fixture
def benchmark(command: Callable[[str], ModuleType]) -> ModuleType:
    return command("benchmarks/decode.py")


def test_ratios_are_taken_within_rounds(benchmark: ModuleType) -> None:
    """A round in which the machine was slow for all is like any other."""
    names = {name for pair in benchmark.RATIOS.values() for name in pair}
    rounds = [{**dict.fromkeys(names, slow), "ours": 1.5 * slow} for slow in (1.0, 10.0, 2.0)]
    found = benchmark.ratios(rounds)
    assert found["vs_base"] == {"median": 1.5, "lower_quartile": 1.5, "upper_quartile": 1.5}
    assert found["vs_uncached"]["median"] == 1.0


def test_a_small_run_writes_every_ratio(benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(benchmark.SHAPES, "medium", TINY)
    path = tmp_path / "new" / "decode.json"
    benchmark.main(benchmark.DecodeOptions(batch_size=3, prompt_length=6, new_tokens=40, rounds=2, json=str(path)))
    report = json.loads(path.read_text())
    for name in benchmark.RATIOS:
        assert report[name] == report["ratios"][name]["median"] > 0
    assert report["seconds"].keys() >= {"base", "ours", "pyvene", "two_generations", "uncached"}
    assert report["gate"].endswith(",max=16,band=0")
    assert 1 < report["cache_while_open_vs_base"] <= 2
    assert report["cache_after_closing_vs_base"] == 1
    assert report["after_closing_vs_floor"] > 1


def test_the_floor_reads_or_multiplies_every_weight_but_the_embeddings(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand, for a machine of 100 bytes and 10 operations a second, then of 1 byte."""
    monkeypatch.setitem(benchmark.SHAPES, "medium", TINY)
    monkeypatch.setattr(benchmark, "matrix_peak", lambda dtype: 10.0)
    monkeypatch.setattr(benchmark, "read_peak", lambda: 100.0)
    contenders = benchmark.Contenders(benchmark.DecodeOptions(batch_size=4, prompt_length=6))
    weights = 2 * (4 * 32 * 32 + 3 * 32 * 48 + 2 * 32) + 32 + 32 * 64
    assert contenders.floor() == pytest.approx(2 * 4 * weights / 10)
    monkeypatch.setattr(benchmark, "read_peak", lambda: 1.0)
    assert contenders.floor() == pytest.approx(4 * weights)


def test_contenders_draw_the_same_tokens_where_they_should(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The uncached loop is the definition; ours must draw its tokens for the comparison to mean anything."""
    monkeypatch.setitem(benchmark.SHAPES, "medium", {**TINY, "initializer_range": 0.3})
    contenders = benchmark.Contenders(benchmark.DecodeOptions(batch_size=4, prompt_length=6, new_tokens=40))
    ours = contenders.ours.generate(**contenders.prompt, gate=contenders.gate, max_new_tokens=benchmark.END_OF_OPEN)
    assert ours.tolist() == contenders.uncached().tolist()
