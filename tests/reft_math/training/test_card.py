from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from reft_math.errors import UserError
from reft_math.models.card import NO_NOTES, make_card, parameters_sha256
from reft_math.scoring.evaluate import score_tables
from reft_math.training.card import adapter_notes, notes_beside


def results(**changes: Any) -> dict[str, Any]:
    """What is read of `train/prefix_reft.py`'s."""

    def summary(correct: int) -> dict[str, Any]:
        return {
            "correct": correct,
            "total": 80,
            "accuracy": correct / 80,
            "interval_95": [0.101, 0.302],
            "mean_tokens": 41.4,
            "tokens_interval_95": [39.0, 44.1],
            "unfinished": 3,
            "seconds_per_answer": 0.5,
        }

    found = {
        "config": {"k": 8, "full_fraction": 0.0, "epochs": 3.0, "learning_rate": 2e-4, "seed": 1},
        "commit": "abc",
        "date": "2026-11-21T10:52:58+00:00",
        "dataset": "gsm8k",
        "train_rows": 64,
        "gate": "kl:2,min=1",
        "calibration": {"kl:1,min=1": summary(9), "kl:2,min=1": summary(12)},
        "bias_norm": {"controller": "projection"},
        "relative_size": {"mean": {"activation": 0.525, "edit": 1.03}},
        "evaluation": {"base": summary(4), "prefix": summary(16)},
        **changes,
    }
    return {**found, "score_tables": score_tables(found["evaluation"] or {})}


def test_a_run_on_a_hub_set_gives_its_id_and_the_accuracy_under_the_adapters_gate() -> None:
    notes = adapter_notes(results())
    for line in (
        "- **data**: 64 solutions of gsm8k",
        "- **trained on**: the first 8 tokens of each",
        "- **size of the edit**: 1.03 of the norm of what it edits, 0.525",
        "- **gate chosen**: by accuracy on 80 validation problems, of `kl:1,min=1`, `kl:2,min=1`",
        "| prefix | 16 | 80 | 20.0% | 10.1% - 30.2% | - | - | - |",
        "| prefix | 41.4 (39.0 to 44.1) | - | 3 |",
    ):
        assert line in notes.text.splitlines()
    data = ModelCard(make_card(notes.metadata, "RED adapter")).data  # as the hub's client reads it
    assert (data.model_name, data.datasets) == ("RED adapter", ["openai/gsm8k"])
    (result,) = data.eval_results
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == ("openai/gsm8k", "main", "test")
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.2)
    assert result.metric_name == "accuracy under kl:2,min=1, 16/80, 95 % interval 10.1% - 30.2%, greedy"


@pytest.mark.parametrize("dataset", ["arithmetic", "/home/someone/mine.jsonl"])
def test_a_set_that_is_not_on_the_hub_is_named_in_the_text_only(dataset: str) -> None:
    notes = adapter_notes(
        results(dataset=dataset, calibration=None, bias_norm={"controller": "none"}, relative_size=None)
    )
    assert notes.metadata == {}
    assert f"64 solutions of {Path(dataset).name}\n" in notes.text
    assert "someone" not in notes.text
    assert "gate chosen" not in notes.text
    assert "norm control" not in notes.text


@pytest.mark.parametrize(
    ("share", "words"), [(1.0, "the whole of each"), (0.5, "the first 8 tokens of each; of 50% of them the whole")]
)
def test_whole_solutions_are_told_from_prefixes(share: float, words: str) -> None:
    run = results()
    run["config"]["full_fraction"] = share
    run["evaluation"]["reft"] = run["evaluation"].pop("prefix") if share == 1 else run["evaluation"]["base"]
    assert f"- **trained on**: {words}\n" in adapter_notes(run).text


@pytest.mark.parametrize("text", [None, json.dumps({"adapter": {}}), json.dumps({"regressor": {}})])
def test_what_no_training_run_left_has_no_notes(tmp_path: Path, text: str | None) -> None:
    """Such as the results of an import or of an evaluation."""
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    notes = notes_beside(tmp_path / "adapter")
    assert (notes.text, notes.metadata) == ("", {})


def test_results_are_of_the_parameters_that_were_evaluated(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    weights = tmp_path / "adapter" / "reft_model.safetensors"
    weights.write_bytes(b"trained")
    (tmp_path / "results.json").write_text(json.dumps(results(parameters=parameters_sha256(tmp_path / "adapter"))))
    assert "| prefix |" in notes_beside(tmp_path / "adapter").text
    weights.write_bytes(b"trained on")
    assert notes_beside(tmp_path / "adapter") == NO_NOTES


def test_a_run_that_was_not_evaluated_claims_no_results() -> None:
    """A sharded base is trained with and not decoded with."""
    notes = adapter_notes(results(evaluation=None, calibration=None))
    assert "- **data**: 64 solutions of gsm8k" in notes.text.splitlines()
    assert "accuracy" not in notes.text
    assert notes.metadata == {"datasets": ["openai/gsm8k"]}


def test_results_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"results\.json cannot be read \(Expecting .*; mend or delete it"):
        notes_beside(tmp_path / "adapter")
