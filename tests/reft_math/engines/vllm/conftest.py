"""A vLLM that is none, with a tiny model and adapters at every kind of position."""

from __future__ import annotations

from pathlib import Path

import fake_vllm
import pytest
from gated_batches import TinyModel, randomised

from reft_math.data.arithmetic.tokenizer import build_tokenizer

POSITIONS = ("all", "solution", "generated")


@pytest.fixture
def server(tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> fake_vllm.Server:
    tokenizer = build_tokenizer()
    adapters = {
        name: randomised(tiny_model("Llama"), seed, positions=name) for seed, name in enumerate(POSITIONS, start=1)
    }
    server = fake_vllm.Server(tiny_model("Llama"), adapters, tokenizer)
    fake_vllm.install(server, monkeypatch)
    return server


@pytest.fixture
def folders(server: fake_vllm.Server, tmp_path: Path) -> dict[str, Path]:
    for name, adapter in server.adapters.items():
        adapter.save_pretrained(tmp_path / name)
    return {name: tmp_path / name for name in server.adapters}
