"""The same command on the same machine writes the same bytes, but for date and seconds of the run.

Run twice in one process: the second finds random generators, caches and models as the first has left them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from interventions import PrefixReftConfig, get_prefix_reft_model
from reft_math.models import load_model

_TRAINING = "--train-size 24 --eval-size 4 --epochs 1 --batch-size 8 --max-new-tokens 30"
_PREFIX = f"train/prefix_reft.py --k 6 --target-norm 0.54 {_TRAINING}"
_ADAPTER = "--adapter {adapter} --max-new-tokens 30"
COMMANDS = {
    "prefix training, gate calibrated": f"{_PREFIX} --calibration-size 4",
    "ReFT by LoReFT, checkpoints": f"{_PREFIX} --intervention loreft --full-fraction 1 --gate always --save-steps 2",
    "LoRA": f"train/lora.py --rank 2 {_TRAINING}",
    "gated and sampled": f"eval/arithmetic.py {_ADAPTER} --limit 6 --batch-size 4 --temperature 1 --samples 2",
    "divergence profile": f"eval/kl_profile.py {_ADAPTER} --limit 6 --gates tokens:4 kl:1",
    "hand-off": f"eval/handoff.py {_ADAPTER} --limit 4",
    "trajectories": f"eval/trajectory.py {_ADAPTER} --limit 4",
}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random interventions: strong enough that gates close all along the completions."""
    reft_model = get_prefix_reft_model(load_model("arithmetic"), PrefixReftConfig(template="chat/1", gate="kl:1"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in reft_model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.6)
    folder = tmp_path_factory.mktemp("adapter")
    reft_model.save_pretrained(folder)
    return str(folder)


def undated(path: Path) -> bytes:
    if path.name == "results.json":
        results = {**json.loads(path.read_text()), "date": None, "score_tables": None}  # which tell the time
        for summary in results.get("evaluation", {}).values():
            summary["seconds_per_answer"] = None
        return json.dumps(results).encode()
    return path.read_bytes()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_same_command_writes_the_same_bytes(
    call: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    written = []
    for turn in ("first", "second"):
        call(f"{COMMANDS[name].format(adapter=adapter)} --output-dir run")
        os.rename("run", turn)
        files = [path for path in Path(turn).rglob("*") if path.is_file()]
        written.append({str(path.relative_to(turn)): undated(path) for path in files})
    first, second = written
    assert len(first) >= 3
    assert first.keys() == second.keys()
    assert [path for path in first if first[path] != second[path]] == []
