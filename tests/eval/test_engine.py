"""The hand-off to a real server on loopback: transformers' own, with the embedded model."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from interventions import PrefixReftConfig, get_prefix_reft_model
from reft_math.data.arithmetic import EMBEDDED_FOLDER
from reft_math.files.records import RecordFile
from reft_math.models import load_model

for package in ("openai", "fastapi", "uvicorn"):
    pytest.importorskip(package, reason="transformers' server needs it")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [Path(sys.executable).with_name("transformers"), "serve", EMBEDDED_FOLDER, "--device", "cpu"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*map(str, command), "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        for _ in range(240):
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail(log.read_text())
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random interventions: strong enough that gates close all along the completions."""
    reft_model = get_prefix_reft_model(load_model("arithmetic"), PrefixReftConfig(template="chat/1"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in reft_model.named_parameters():
            size = 0.6 / 64 if name.endswith("bias") else 0.6  # activations at ffn_up are small
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    folder = tmp_path_factory.mktemp("adapter")
    reft_model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("gate", ["--adapter {adapter} --gate kl:1", "--adapter {adapter} --gate tokens:3", ""])
def test_the_records_are_those_of_the_local_run(
    call: Callable[[str], None], tmp_path: Path, server: str, adapter: str, gate: str
) -> None:
    line = f"eval/arithmetic.py --limit 20 --batch-size 8 {gate.format(adapter=adapter)} --output-dir {tmp_path}"
    call(f"{line}/local")
    call(f"{line}/engine --engine {server} --engine-model {EMBEDDED_FOLDER} --engine-concurrency 4")
    name = "adapter" if gate else "base"
    local, engine = (RecordFile(tmp_path / run / "records" / f"{name}.jsonl").done for run in ("local", "engine"))
    if not gate:  # the engine draws everything: its records say so
        local = {key: {**row, "kl": [], "cumulative_kl": 0.0, "closing_position": 0} for key, row in local.items()}
    else:
        closings = {row["closing_position"] for row in local.values()}
        assert len(closings) > 3 if "kl" in gate else closings == {3}
    assert engine == local
