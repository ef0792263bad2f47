from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from reft_math.scoring.records import RecordFile


def write_run(folder: Path, decoders: dict[str, str]) -> None:
    """A run whose decoders solved the problems marked ``+``."""
    evaluation = {}
    for name, marks in decoders.items():
        RecordFile(folder / "records" / f"{name}.jsonl").append(
            {"id": f"p{index}", "correct": mark == "+"} for index, mark in enumerate(marks)
        )
        evaluation[name] = {
            "correct": marks.count("+"),
            "total": len(marks),
            "accuracy": marks.count("+") / len(marks),
            "interval_95": [0.0, 1.0],
        }
    results = {
        "config": {"learning_rate": 0.005},
        "train_rows": 64,
        "trainable_parameters": 3072,
        "bias_norm": {"achieved": 0.54, "tracking_error": 0.01},
        "evaluation": evaluation,
    }
    (folder / "results.json").write_text(json.dumps(results))


def test_pairs_runs_by_problem(call: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """8 problems only the second solves and 1 only the first: p = 2·(1 + 9)/2⁹."""
    write_run(tmp_path / "one", {"base": "+---------"})
    write_run(tmp_path / "two", {"prefix": "-++++++++-"})
    call(f"eval/compare.py --runs {tmp_path}/one {tmp_path}/two")
    row = next(line for line in capfd.readouterr().out.splitlines() if "two" in line)
    assert "8/10" in row
    assert f"{2 * (1 + 9) / 2**9:.2g}" in row


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--runs {folder}/nothing", "a run is an output folder with a readable results.json"),
        ("--runs {folder}/one --against {folder}/one:lora", "has no decoder 'lora'; it has base"),
        ("--runs {folder}/one {folder}/other", "a paired test needs the same problems"),
        ("--runs {folder}/one {folder}/sampled", "a paired test needs one completion a problem"),
        ("", "--runs must be at least one output folder"),
    ],
)
def test_a_mistake_is_one_line(
    call: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    write_run(tmp_path / "one", {"base": "+-"})
    write_run(tmp_path / "other", {"base": "+--"})
    write_run(tmp_path / "sampled", {"base": "+-"})
    results = json.loads((tmp_path / "sampled" / "results.json").read_text())
    results["evaluation"]["base"]["interval_95"] = None  # of equal rates
    (tmp_path / "sampled" / "results.json").write_text(json.dumps(results))
    samples = [{"id": f"p0#{sample}", "problem": "p0", "correct": True} for sample in range(2)]
    (tmp_path / "sampled" / "records" / "base.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    with pytest.raises(SystemExit) as stopped:
        call(f"eval/compare.py {arguments.format(folder=tmp_path)}")
    assert stopped.value.code == 2
    assert message in capfd.readouterr().err
