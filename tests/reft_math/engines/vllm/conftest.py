"""A vLLM that is none, with a tiny model and adapters at every kind of position."""

from __future__ import annotations

from pathlib import Path

import fake_vllm
import pytest
from gated_batches import TinyModel, randomised

from interventions import PrefixReftModel
from reft_math.data.arithmetic.tokenizer import build_tokenizer

POSITIONS = ("all", "solution", "generated")


@pytest.fixture(scope="module")
def adapters(tiny_model: TinyModel) -> dict[str, PrefixReftModel]:
    return {name: randomised(tiny_model("Llama"), seed, positions=name) for seed, name in enumerate(POSITIONS, start=1)}


@pytest.fixture(scope="module")
def folders(adapters: dict[str, PrefixReftModel], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp("adapters") / name for name in adapters}
    for name, adapter in adapters.items():
        adapter.save_pretrained(folders[name])
    return folders


@pytest.fixture
def server(
    tiny_model: TinyModel, adapters: dict[str, PrefixReftModel], monkeypatch: pytest.MonkeyPatch
) -> fake_vllm.Server:
    server = fake_vllm.Server(tiny_model("Llama"), dict(adapters), build_tokenizer())
    fake_vllm.install(server, monkeypatch)
    return server
