"""A model's own right solutions, sampled, kept, and trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reft_math.data.registry import load_problems
from reft_math.files.records import RecordFile


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_right_samples_become_a_data_set_that_prefix_training_reads(
    call: Callable[[str], None], tmp_path: Path
) -> None:
    call(f"train/solutions.py --limit 24 --samples 3 --temperature 1 --output-dir {tmp_path}/own")
    rows = lines(tmp_path / "own" / "solutions.jsonl")
    samples = RecordFile(tmp_path / "own" / "records" / "samples.jsonl").done.values()
    right = {(record["question"], record["completion"]) for record in samples if record["correct"]}
    assert {(row["question"], row["solution"]) for row in rows} == right
    answers = {problem.question: problem.answer for problem in load_problems("arithmetic", "train", limit=24)}
    assert all(answers[row["question"]] == row["answer"] for row in rows)
    found = json.loads((tmp_path / "own" / "results.json").read_text())
    assert found["yield"]["samples"] == 72
    assert found["yield"]["kept"] == len(rows)

    call(
        f"train/prefix_reft.py --dataset {tmp_path}/own/solutions.jsonl --eval-dataset arithmetic --epochs 1"
        f" --gate tokens:10 --eval-size 4 --output-dir {tmp_path}/run"
    )
    trained = json.loads((tmp_path / "run" / "results.json").read_text())
    assert trained["train_rows"] == len(rows)
    assert (trained["eval_dataset"], trained["evaluation"]["base"]["total"]) == ("arithmetic", 4)


def test_no_right_sample_is_an_error_that_keeps_the_records(
    call: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        call(f"train/solutions.py --limit 2 --samples 1 --max-new-tokens 1 --output-dir {tmp_path}/own")
    assert "no sample of 2 problems was right and ended by itself" in capfd.readouterr().err
    assert len(lines(tmp_path / "own" / "records" / "samples.jsonl")) == 2
    assert not (tmp_path / "own" / "solutions.jsonl").exists()
