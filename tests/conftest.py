"""Tiny models of every supported family, built from a configuration, and the real data files where they are at hand."""

from __future__ import annotations

import gc
import importlib.util
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints
from unittest import mock

import fault_injection
import hostile_answers as hostile
import pytest
import torch
import transformers
from fake_engine import FakeEngine
from fake_hub import FakeHub
from ranks import World
from transformers import PreTrainedModel

import reft_math.commands.run
from reft_math.data.arithmetic.tokenizer import build_tokenizer

# Tests run two at once: with two threads each they would wait for one another most of the time.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


def load_module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3", "Phi3", "GPTNeoX")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, so that none is left to one process when the other has nothing more to do."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """What is imported by now stays: the trainer collects garbage in every run, half a second over all of it."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="session")
def unsynced() -> Iterator[None]:
    """What a test writes need not outlive a loss of power; tests of what must watch the calls of ``os.fsync``."""
    with mock.patch("os.fsync", return_value=None):
        yield


@pytest.fixture(autouse=True, scope="session")
def unreported() -> Iterator[None]:
    """TRL's trainers tell the hub that they are used."""
    with mock.patch("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True):
        yield


@pytest.fixture
def hostile_answers() -> Callable[..., list[Any]]:
    """Hostile completions by seed, none of them right for its gold."""
    return hostile.hostile_answers


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., PreTrainedModel]:
    """``tiny_model(family, **changes)``: 3 layers, width 32, vocabulary 64, weights by a fixed seed, float32.

    Head size times heads differs from the hidden size, so that no site's width passes for another's.
    """

    def build(family: str = "Llama", **changes: object) -> PreTrainedModel:
        name = "Gemma3Text" if family == "Gemma3" else family
        config = getattr(transformers, f"{name}Config")(
            **{
                "vocab_size": 64,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 12,
                "max_position_embeddings": 128,
                "initializer_range": 0.2,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
                **({"head_dim": 8} if family == "Qwen2" else {}),
                **changes,
            }
        )
        torch.manual_seed(0)
        model: PreTrainedModel = getattr(transformers, f"{family}ForCausalLM")(config).eval()
        model.generation_config.pad_token_id = 0
        return model

    return build


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained model with the embedded tokenizer: fast, and nothing here depends on what it answers."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data files, beside the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real data files are not beside the repository (../shared/data)")
    return folder


@pytest.fixture
def command() -> Callable[[str], ModuleType]:
    """``command("train/prefix_reft.py")``: the script as a module, its ``main`` and options within reach."""

    def load(path: str) -> ModuleType:
        name = path.removesuffix(".py").replace("/", "_") + "_command"
        return load_module(name, Path(__file__).resolve().parents[1] / path)

    return load


@pytest.fixture
def call(command: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``call("train/prefix_reft.py --k 10 …")``: the command line in this process."""

    def run_line(line: str) -> None:
        path, *arguments = shlex.split(line)
        module = command(path)
        options = get_type_hints(module.main)["options"]
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        reft_math.commands.run.run(module.main, options, module.__doc__)

    return run_line


@pytest.fixture
def refused(call: Callable[[str], None], capfd: pytest.CaptureFixture[str]) -> Callable[[str, str], str]:
    """``refused("train/prefix_reft.py --k 0 …", "k must be …")``: exit code 2, one line of error that says so, and no
    traceback; returns all that stands on standard error."""

    def expect(line: str, message: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            call(line)
        assert stopped.value.code == 2
        written = capfd.readouterr().err
        (error,) = [text for text in written.splitlines() if text.startswith("error: ")]
        assert message in error
        assert "Traceback" not in written
        return written

    return expect


@pytest.fixture
def killed_at_every_call() -> Callable[[Callable[[], object]], Iterator[None]]:
    """As in `fault_injection`."""
    return fault_injection.killed_at_every_call


@pytest.fixture
def failing_at_every_call() -> Callable[[Callable[[], object]], Iterator[OSError | None]]:
    """As in `fault_injection`."""
    return fault_injection.failing_at_every_call


@pytest.fixture
def lost_without_power() -> Callable[[Callable[[], object], Path], list[str]]:
    """As in `fault_injection`."""
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("which file a descriptor is of is read from /proc")
    return fault_injection.lost_without_power


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., World]]:
    """``world(processes, "train/prefix_reft.py --k 10 …", **environment)``: started as by ``torchrun``, and over with
    the test."""
    worlds = []

    def start(processes: int, line: str, **environment: str) -> World:
        worlds.append(World(processes, line, tmp_path_factory.mktemp("world"), environment))
        return worlds[-1]

    yield start
    for each in worlds:
        each.kill()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub on loopback in place of the real one, with a cache of its own; ``hf_writer`` is logged in."""
    fake = FakeHub()
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    for name, value in {
        "ENDPOINT": fake.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": fake.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub-cache"),
        "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,  # else large files go to a storage service that is not faked here
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    # Clients made once for all know the real hub's address.
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", fake.endpoint)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
    yield fake
    fake.close()


@pytest.fixture
def engine_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    """A completions server on loopback, whose failures are soon tried again, and only twice."""
    pytest.importorskip("openai", reason="the engine extra is not installed")
    monkeypatch.setattr("reft_math.decoding.engine.MAX_RETRIES", 2)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    fake = FakeEngine()
    yield fake
    fake.close()
