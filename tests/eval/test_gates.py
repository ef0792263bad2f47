"""The commands that try gates on an adapter: calibrate_gate.py and kl_profile.py."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from interventions import PrefixReftConfig, get_prefix_reft_model
from reft_math.models import load_model


@pytest.fixture
def null_adapter(tmp_path: Path) -> Path:
    """An adapter that changes nothing: all gates are equally good, and no divergence is measured."""
    config = PrefixReftConfig(gate="tokens:3", template="chat/1")
    get_prefix_reft_model(load_model("arithmetic"), config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def default_gate(adapter: Path) -> str:
    return str(json.loads((adapter / "reft_config.json").read_text())["gate"])


def test_the_choice_is_saved_where_asked_for(call: Callable[[str], None], tmp_path: Path, null_adapter: Path) -> None:
    line = f"eval/calibrate_gate.py --adapter {null_adapter} --gates kl:1 tokens:2 --limit 6 --output-dir {tmp_path}"
    weights = (null_adapter / "reft_model.safetensors").read_bytes()
    call(f"{line}/run")
    assert default_gate(null_adapter) == "tokens:3"
    call(f"{line}/saved --save")
    assert default_gate(null_adapter) == "tokens:2"
    assert "- **gate in decoding**: `tokens:2`" in (null_adapter / "README.md").read_text()
    assert (null_adapter / "reft_model.safetensors").read_bytes() == weights
    results = json.loads((tmp_path / "saved" / "results.json").read_text())
    assert results["best"] == "tokens:2"
    assert {gate: summary["total"] for gate, summary in results["gates"].items()} == {"kl:1": 6, "tokens:2": 6}
    assert results["noise_floor"]["rows"] == 6
    assert results["noise_floor"]["max"] < 1e-5, "in float32"


def test_a_profile_writes_tables_figure_and_records(
    call: Callable[[str], None], tmp_path: Path, null_adapter: Path
) -> None:
    folder = tmp_path / "run"
    call(f"eval/kl_profile.py --adapter {null_adapter} --gates kl:1 tokens:2 --limit 5 --output-dir {folder}")
    with (folder / "kl_profile.csv").open() as file:
        profile = list(csv.DictReader(file))
    assert profile[0]["rows"] == "5"
    assert max(float(row["mean"]) for row in profile) < 1e-6, "rows of one batch may differ by float32 rounding"
    with (folder / "gates.csv").open() as file:
        gates = {row["gate"]: row for row in csv.DictReader(file)}
    assert list(gates) == ["off", "kl:1", "tokens:2", "kl:inf"]
    assert len({row["correct"] for row in gates.values()}) == 1
    assert gates["tokens:2"]["median_closing_position"] == "2"
    assert {path.name for path in (folder / "records").iterdir()} == {
        "off.jsonl",
        "kl-1.jsonl",
        "tokens-2.jsonl",
        "kl-inf.jsonl",
    }
    assert gates["tokens:2"]["never_closed"] == "0"
    summary = json.loads((folder / "results.json").read_text())["gates"]["kl:1"]
    assert [float(gates["kl:1"][name]) for name in ("low", "high")] == summary["interval_95"]
    for ending in ("png", "svg"):
        assert (folder / f"kl_profile.{ending}").stat().st_size > 1000


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("calibrate_gate.py", "--adapter names whose gate to choose"),
        ("calibrate_gate.py --adapter {adapter} --gate kl:1", "--gates names the candidates; leave --gate out"),
        ("calibrate_gate.py --adapter {adapter} --gates kl:x", "a gate is 'off', 'always', 'prompt'"),
        (
            "calibrate_gate.py --adapter no/where --save",
            "--save writes into the adapter's folder; no/where is none",
        ),
        ("kl_profile.py --adapter {adapter} --gate kl:1", "--gates names the gates to try; leave --gate out"),
        ("kl_profile.py", "--adapter names whose divergence to measure"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    refused: Callable[[str, str], str],
    tmp_path: Path,
    null_adapter: Path,
    line: str,
    message: str,
) -> None:
    refused(f"eval/{line.format(adapter=null_adapter)} --output-dir {tmp_path}/run", message)
    assert not (tmp_path / "run").exists()
