from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from reft_math.data.regression_rows import RegressionRow
from reft_math.errors import UserError
from reft_math.regression.evaluation import (
    EVALUATION_COLUMNS,
    SampledAnswers,
    evaluate_regressor,
    summarise,
    table_rows,
)
from reft_math.regression.regressor import Regressor

MakeTiny = Callable[..., Regressor]
Record = dict[str, Any]

TEXTS = ("good", "not so good, not bad", "bad, so bad", "so so", "not bad")
ROWS = [RegressionRow(f"r/{index}", text, 1 + 0.75 * index) for index, text in enumerate(TEXTS)]


@pytest.fixture
def writer(make_tiny: MakeTiny) -> Regressor:
    """Mostly writes digits, commas and ends: the logits of all other tokens are 0."""
    regressor = make_tiny(grid="1,12")
    tokens = [*regressor.tokenizer.convert_tokens_to_ids(["1", "2", "3", ","]), regressor.tokenizer.eos_token_id]
    with torch.no_grad():
        kept = regressor.model.lm_head.weight[tokens].clone()
        regressor.model.lm_head.weight.zero_()
        regressor.model.lm_head.weight[tokens] = 4 * kept
    return regressor


def passes_of(regressor: Regressor, run: Callable[[], object]) -> list[int]:
    """Rows of every forward pass meanwhile."""
    rows: list[int] = []
    embeddings = regressor.model.get_input_embeddings()
    handle = embeddings.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    run()
    handle.remove()
    return rows


def number_or(text: str, default: float) -> float:
    try:
        return float(text)
    except ValueError:
        return default


# --- records ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_every_row_has_its_predictions_and_what_was_written(writer: Regressor, tmp_path: Path) -> None:
    writing = SampledAnswers(samples=6, default=-1.0)
    records = evaluate_regressor(writer.train(), ROWS, tmp_path / "new" / "r.jsonl", "test", 2, writing)
    assert not writer.training
    lines = (tmp_path / "new" / "r.jsonl").read_text().splitlines()
    assert sorted(map(json.dumps, records)) == sorted(lines)
    assert [(record["id"], record["text"], record["target"]) for record in records] == [
        (row.id, row.text, row.target) for row in ROWS
    ]
    for row, record in zip(ROWS, records, strict=True):
        input_ids = torch.tensor([writer.tokenizer.encode(f"Question: {row.text}\nAnswer:")])
        found = writer.predictors(input_ids, torch.ones_like(input_ids))
        assert record["probabilities"] == pytest.approx(found.pop("probabilities")[0].tolist(), abs=1e-9)
        alone = {name: value.item() for name, value in found.items()}
        assert record["entropy"] == pytest.approx(alone.pop("entropy"), abs=1e-9)
        drawn: list[int] = []
        while len(drawn) < 8 and writer.tokenizer.eos_token_id not in drawn:  # " 12", its end and four tokens more
            whole = torch.cat([input_ids, torch.tensor([drawn], dtype=torch.long)], dim=1)
            drawn.append(int(writer.model(input_ids=whole).logits[0, -1].argmax()))
        assert record["written"] == writer.tokenizer.decode(drawn, skip_special_tokens=True)
        assert len(record["samples"]) == 6
        expected = {
            **alone,
            "decoded": number_or(record["written"], -1),
            "rail_sampled": np.mean([number_or(text, -1) for text in record["samples"]]),
        }
        assert record["predictions"] == pytest.approx(expected, abs=1e-9)
        assert list(record["predictions"]) == list(expected)
    answers = [text for record in records for text in [record["written"], *record["samples"]]]
    assert {number_or(text, -1) == -1 for text in answers} == {True, False}  # both kinds were met


def test_a_row_whose_predictions_are_nan_is_named_and_not_recorded(writer: Regressor, tmp_path: Path) -> None:
    """The first row that has the word, in the order in which rows are read, and those read before it stay."""
    token = writer.tokenizer.convert_tokens_to_ids("?")
    writer.model.get_input_embeddings().weight.data[token] = torch.nan
    rows = [*ROWS, RegressionRow("r/bad", "?", 1.0)]
    with pytest.raises(UserError, match=r"predictions must be finite; those for row r/bad are NaN or infinite"):
        evaluate_regressor(writer, rows, tmp_path / "r.jsonl", "test", 1, SampledAnswers(samples=2))
    assert '"r/0"' in (tmp_path / "r.jsonl").read_text()
    assert "r/bad" not in (tmp_path / "r.jsonl").read_text()


def test_nothing_is_sampled_that_was_not_asked_for(writer: Regressor, tmp_path: Path) -> None:
    records = evaluate_regressor(writer, ROWS, tmp_path / "r.jsonl", "test", 2, SampledAnswers())
    names = ["rail", "rail_normalised", "mode", "median", "decoded"]
    assert all(list(record["predictions"]) == names for record in records)
    assert all("samples" not in record for record in records)


@pytest.mark.parametrize(
    "settings",
    [{"loss": "head:mean"}, {"loss": "head:raft-grid"}, {"loss": "raft", "bidirectional": True}],
)
def test_heads_and_bidirectional_prompts_write_nothing(
    make_tiny: MakeTiny, tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    regressor = make_tiny(**settings)
    monkeypatch.setattr(regressor.model, "generate", None)
    records = evaluate_regressor(regressor, ROWS, tmp_path / "r.jsonl", "test", 2, SampledAnswers(samples=3))
    told = {"id", "text", "target", "predictions", "entropy", "probabilities"}
    assert {key for record in records for key in record} == told
    predicted = regressor.predict(TEXTS)
    name = regressor.regressor_config.predictor
    assert [record["predictions"][name] for record in records] == pytest.approx(predicted, rel=1e-5)
    assert all((record["entropy"] is None) == (settings["loss"] == "head:mean") for record in records)


def test_numbers_of_one_token_are_read_as_numbers(
    make_tiny: MakeTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written by a token whose name says more than its number; what follows a line's end is not read."""
    regressor = make_tiny(grid="0:5:2.5", added_tokens="average")
    tokenizer: PreTrainedTokenizerBase = regressor.tokenizer
    half, five, end = (*tokenizer.convert_tokens_to_ids(["<number 2.5>", "<number 5.0>"]), tokenizer.eos_token_id)
    lines = [[half, end, end], [five, *tokenizer.encode("\n"), half], [*tokenizer.encode("bad"), end, end]]

    def generate(input_ids: torch.Tensor, max_new_tokens: int, **settings: Any) -> Any:
        assert max_new_tokens == 5
        sequences = torch.cat([input_ids, torch.tensor(lines)], dim=1)
        return type("Output", (), {"sequences": sequences})

    monkeypatch.setattr(regressor.model, "generate", generate)
    rows = [RegressionRow(str(index), "so" * (3 - index), 1.0) for index in range(3)]
    records = evaluate_regressor(regressor, rows, tmp_path / "r.jsonl", "test", 3, SampledAnswers(default=9.0))
    assert [record["written"] for record in records] == ["<number 2.5>", "<number 5.0>", "bad"]
    assert [record["predictions"]["decoded"] for record in records] == [2.5, 5.0, 9.0]


# --- a stopped run ----------------------------------------------------------------------------------------------------


def test_a_stopped_run_draws_the_samples_that_it_would_have_drawn(writer: Regressor, tmp_path: Path) -> None:
    """Whether it stopped between two batches of two rows or within one."""

    def run(name: str, seed: int = 0) -> list[Record]:
        return evaluate_regressor(writer, ROWS, tmp_path / name, "test", 2, SampledAnswers(samples=4, seed=seed))

    whole = run("whole")
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    for kept in (4, 3, 1):
        (tmp_path / "stopped").write_bytes(b"".join(lines[:kept]))
        torch.manual_seed(kept)  # whatever was drawn before
        assert run("stopped") == whole
        assert (tmp_path / "stopped").read_bytes() == b"".join(lines)
    samples = {tuple(record["samples"]) for record in whole}
    assert len(samples) == len(ROWS)
    assert samples != {tuple(record["samples"]) for record in run("other", seed=1)}


def test_sampling_leaves_the_random_state_as_it_was(writer: Regressor, tmp_path: Path) -> None:
    """An evaluation in between would change what training draws next."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    evaluate_regressor(writer, ROWS, tmp_path / "r.jsonl", "test", 2, SampledAnswers(samples=4))
    assert torch.equal(torch.get_rng_state(), before)


def test_rows_with_a_record_are_not_read_again(writer: Regressor, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"

    def run() -> list[Record]:
        return evaluate_regressor(writer, ROWS, path, "test", 2, SampledAnswers())

    whole = run()
    assert passes_of(writer, run) == []
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], *lines[2:]]))
    assert set(passes_of(writer, run)) == {1}
    assert [record["written"] for record in run()] == [record["written"] for record in whole]
    for record, other in zip(run(), whole, strict=True):
        assert record["predictions"] == pytest.approx(other["predictions"], abs=1e-9)


# --- summaries --------------------------------------------------------------------------------------------------------


def record(target: float, no_number: tuple[float, float], entropy: float | None, **predictions: float) -> Record:
    return {
        "target": target,
        "no_number": dict(zip(("decoded", "rail_sampled"), no_number, strict=True)),
        "entropy": entropy,
        "predictions": predictions,
    }


RECORDS = [
    record(1.0, (0, 0.5), 0.5, rail=1.5, decoded=1, rail_sampled=0.5),
    record(2.0, (1, 0), 1.0, rail=1.25, decoded=0, rail_sampled=2.5),
    record(4.0, (0, 0.5), 0.25, rail=3.0, decoded=3, rail_sampled=2.0),
    record(3.0, (1, 1), 1.5, rail=3.5, decoded=0, rail_sampled=0.0),
]


def test_a_summary_by_numpy() -> None:
    summary = summarise(RECORDS)
    assert summary["total"] == 4
    assert list(summary["predictors"]) == ["rail", "decoded", "rail_sampled"]
    targets = np.array([1.0, 2.0, 4.0, 3.0])
    for name, found in summary["predictors"].items():
        predictions = np.array([one["predictions"][name] for one in RECORDS])
        assert found["rmse"]["value"] == pytest.approx(np.sqrt(np.mean((predictions - targets) ** 2)))
        assert found["pearson"]["value"] == pytest.approx(np.corrcoef(predictions, targets)[0, 1])
        low, high = found["rmse"]["interval_95"]
        assert low <= found["rmse"]["value"] <= high
    ranks = [[2, 1, 3, 4], [1, 2, 4, 3]]  # of rail's numbers and of the targets
    assert summary["predictors"]["rail"]["spearman"]["value"] == pytest.approx(np.corrcoef(ranks)[0, 1])
    entropy = {"mean": 0.8125, "quartiles": pytest.approx([0.4375, 0.75, 1.125])}
    assert summary["entropy"] == entropy


def test_the_share_without_a_number_is_of_the_answers_that_were_read() -> None:
    shares = {name: found["no_number"] for name, found in summarise(RECORDS)["predictors"].items()}
    assert shares == {"rail": None, "decoded": 0.5, "rail_sampled": 0.5}


def test_heads_have_no_entropy_and_the_seed_is_the_resamples() -> None:
    records = [record(row, (0, 0), None, head=row + float(np.sin(row))) for row in range(30)]
    first, again, other = (summarise(records, seed) for seed in (0, 0, 1))
    assert first["entropy"] is None
    assert list(first["predictors"]) == ["head"]
    assert first == again != other


def test_a_summary_is_written_as_json_is(writer: Regressor, tmp_path: Path) -> None:
    records = evaluate_regressor(writer, ROWS, tmp_path / "r.jsonl", "test", 5, SampledAnswers(samples=2))
    summary = summarise(records)
    assert json.loads(json.dumps(summary)) == summary
    assert list(summary["predictors"])[-2:] == ["decoded", "rail_sampled"]


# --- the table --------------------------------------------------------------------------------------------------------


def estimate(value: float | None, *interval: float) -> dict[str, Any]:
    return {"value": value, "interval_95": None if value is None else list(interval)}


def test_the_table_has_a_row_a_predictor_and_a_star_at_what_was_trained() -> None:
    rail = {
        "rmse": estimate(1.23456, 1.0, 1.5),
        "pearson": estimate(0.5, -0.25, 0.75),
        "spearman": estimate(None),
        "no_number": None,
    }
    decoded = {**rail, "no_number": 0.125}
    summaries = {"base": {"predictors": {"rail": rail}}, "tuned": {"predictors": {"rail": rail, "decoded": decoded}}}
    cells = ["1.235", "1.000 - 1.500", "0.500", "-0.250 - 0.750", "-", "-"]
    assert table_rows(summaries, "tuned/rail") == [
        ["base, rail", *cells, "-"],
        ["tuned, rail *", *cells, "-"],
        ["tuned, decoded", *cells, "12.5%"],
    ]
    assert len(EVALUATION_COLUMNS) == 8
    assert [row[0] for row in table_rows(summaries)] == ["base, rail", "tuned, rail", "tuned, decoded"]
