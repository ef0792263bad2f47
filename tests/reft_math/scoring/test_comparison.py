from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reft_math.files.records import RecordFile
from reft_math.scoring.comparison import TRAINING_COLUMNS, Entry, Run, by_problem

TRAINED = {
    "config": {"learning_rate": 0.005, "epochs": 3.0, "k": 10, "full_fraction": 0.0},
    "train_rows": 64,
    "trainable_parameters": 3072,
    "bias_norm": {"achieved": 0.54, "tracking_error": 0.01},
}
LORA = {**TRAINED, "config": {"learning_rate": 0.001, "epochs": 1.0, "k": None}, "bias_norm": None}
MIXED = {**TRAINED, "config": {"learning_rate": 0.005, "epochs": 3.0, "k": 10, "full_fraction": 0.5}}
WHOLE = {**TRAINED, "config": {"learning_rate": 0.005, "epochs": 3.0, "k": 10, "full_fraction": 1.0}}


def entry(folder: Path, decoder: str, results: dict[str, Any]) -> Entry:
    record = {"id": "p", "question": "q", "gold": "1", "correct": True}
    RecordFile(folder / "records" / f"{decoder}.jsonl").append([record])
    (folder / "results.json").write_text(json.dumps({**results, "evaluation": {decoder: {}}}))
    (found,) = Run.read(str(folder)).entries("name")
    return found


@pytest.mark.parametrize(
    ("decoder", "results", "expected"),
    [
        ("prefix", TRAINED, (64, 3.0, "10", 0.005, 3072, 0.54, 0.01)),
        ("always_on", TRAINED, (64, 3.0, "10", 0.005, 3072, 0.54, 0.01)),
        ("reft", WHOLE, (64, 3.0, "all", 0.005, 3072, 0.54, 0.01)),
        ("prefix", MIXED, (64, 3.0, "10, 50% all", 0.005, 3072, 0.54, 0.01)),
        ("lora", LORA, (64, 1.0, "all", 0.001, 3072, None, None)),
        ("base", TRAINED, (None,) * 7),
        ("base_given_careful_start", TRAINED, (None,) * 7),
        ("base", {"adapter": None}, (None,) * 7),
        ("adapter", {"adapter": {"k": 8}}, (None, None, "8", None, None, None, None)),
        ("adapter", {"adapter": {"k": None}}, (None, None, "all", None, None, None, None)),
        # eval/handoff.py, whose always-on completions may be of another adapter
        ("base", {"adapter": {"k": 8}, "reft": {"k": None}}, (None,) * 7),
        ("prefix", {"adapter": {"k": 8}, "reft": {"k": None}}, (None, None, "8", None, None, None, None)),
        ("always_on", {"adapter": {"k": 8}, "reft": {"k": None}}, (None, None, "all", None, None, None, None)),
        ("always_on", {"adapter": {"k": 8}, "reft": None}, (None, None, "8", None, None, None, None)),
    ],
)
def test_what_a_decoder_was_trained_on_is_shown_as_far_as_it_is_known(
    tmp_path: Path, decoder: str, results: dict[str, Any], expected: tuple[object, ...]
) -> None:
    training = entry(tmp_path, decoder, results).training
    assert tuple(training.get(name) for name in TRAINING_COLUMNS) == expected


def test_a_question_that_a_data_set_asks_twice_is_two_problems_whatever_the_order_of_records() -> None:
    """Records are written in the order in which processes get to them, and lines have no leading zeros."""
    records = [{"id": name, "question": question} for name, question in (("f/9", "q"), ("f/10", " q\n"), ("c", "r  s"))]
    keyed = by_problem(records[::-1])
    assert {key: record["id"] for key, record in keyed.items()} == {("r s", 1): "c", ("q", 1): "f/9", ("q", 2): "f/10"}
