"""Likelihood along texts, and where greedy answers part."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interventions import PrefixReftConfig, PrefixReftModel, get_prefix_reft_model
from reft_math.data.arithmetic.problems import arithmetic_problems
from reft_math.files.records import RecordFile
from reft_math.models import load_model, load_tokenizer

SETTINGS = "--limit 12 --batch-size 5"
SOURCES = ("base", "always_on", "prefix")


@pytest.fixture
def make_adapter(tmp_path: Path) -> Callable[[float], Path]:
    """``make_adapter(strength)``: RED moved at random; untouched, it changes nothing."""

    def make(strength: float) -> Path:
        model = get_prefix_reft_model(load_model("arithmetic"), PrefixReftConfig(gate="kl:2,min=1", template="chat/1"))
        torch.manual_seed(7)
        for values, size in ((model.biases(), 1 / 64), (model.scales(), 1)):  # activations at ffn_up are small
            for value in values.values():
                value.data += strength * size * torch.randn_like(value)
        model.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    return make


def read(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    return RecordFile(folder / "records" / f"{name}.jsonl").done


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_tables_are_what_the_records_say_and_the_records_what_the_model_says(
    call: Callable[[str], None], tmp_path: Path, make_adapter: Callable[[float], Path]
) -> None:
    adapter, folder = make_adapter(0.7), tmp_path / "run"
    call(f"eval/trajectory.py --adapter {adapter} {SETTINGS} --output-dir {folder}")
    answers = {source: read(folder, source) for source in SOURCES}
    scored = {text: read(folder, f"likelihood-{text}") for text in ("reference", *SOURCES)}

    model, tokenizer = load_model("arithmetic").double(), load_tokenizer("arithmetic")
    reft_model = PrefixReftModel.from_pretrained(adapter, model).eval()
    closed = []
    for problem in arithmetic_problems("test", 12):
        reference = [*tokenizer.encode(problem.solution, add_special_tokens=False), 2]
        texts = {"reference": reference, **{name: answers[name][problem.id]["token_ids"] for name in SOURCES}}
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": problem.question}], return_dict=False)
        for text, token_ids in texts.items():
            record = scored[text][problem.id]
            for scorer, forward in (("base", model), ("always_on", reft_model)):
                logits = forward(input_ids=torch.tensor([prompt + token_ids])).logits[0, len(prompt) - 1 : -1]
                expected = logits.log_softmax(-1).gather(1, torch.tensor(token_ids)[:, None])[:, 0].tolist()
                assert record[scorer] == pytest.approx(expected, rel=1e-3, abs=1e-4)
            position = record["closing_position"]
            end = len(token_ids) if position is None else position
            assert record["prefix"] == record["always_on"][:end] + record["base"][end:]
        # Along the gated decoder's own answer the gate closes where it closed when that was written.
        own = scored["prefix"][problem.id]["closing_position"]
        assert own == answers["prefix"][problem.id]["closing_position"]
        closed.append(own)
    assert len(set(closed)) > 1

    for row in rows_of(folder / "trajectory.csv"):
        likelihoods = [record[row["scorer"]] for record in scored[row["text"]].values()]
        values = [each[int(row["position"])] for each in likelihoods if len(each) > int(row["position"])]
        assert int(row["rows"]) == len(values)
        assert float(row["mean"]) == pytest.approx(np.mean(values), abs=1e-9)
        if len(values) > 1:
            assert min(values) <= float(row["low"]) <= float(row["high"]) <= max(values)
    totals = rows_of(folder / "totals.csv")
    assert len(totals) == 12
    for row in totals:
        values = [sum(record[row["scorer"]]) for record in scored[row["text"]].values()]
        assert float(row["total"]) == pytest.approx(np.mean(values))
        assert float(row["low"]) <= float(row["total"]) <= float(row["high"])

    counted: dict[tuple[str, ...], int] = {}
    for first, second in (("base", "always_on"), ("base", "prefix"), ("always_on", "prefix")):
        for name, one in answers[first].items():
            other = answers[second][name]
            pairs = zip(one["token_ids"] + [None] * 80, other["token_ids"] + [None] * 80, strict=False)
            position = str(next((index for index, (a, b) in enumerate(pairs) if a != b), ""))
            fate = "/".join("right" if row["correct"] else "wrong" for row in (one, other))
            counted[first, second, position, fate] = counted.get((first, second, position, fate), 0) + 1
    found = {
        (row["first"], row["second"], row["position"], fate): int(row[fate])
        for row in rows_of(folder / "partings.csv")
        for fate in row
        if "/" in fate and int(row[fate])
    }
    assert found == counted
    results = json.loads((folder / "results.json").read_text())
    assert sum(row["pairs"] for row in results["fates"]) == 3 * 12
    assert results["evaluation"]["prefix"]["total"] == 12
    assert "commit" in results
    for ending in ("png", "svg"):
        assert (folder / f"trajectory.{ending}").stat().st_size > 1000

    before = {name: (folder / name).read_bytes() for name in ("trajectory.csv", "totals.csv", "partings.csv")}
    path = folder / "records" / "likelihood-base.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:7]) + b'{"id": "torn')
    call(f"eval/trajectory.py --adapter {adapter} {SETTINGS} --output-dir {folder} --resume")
    assert path.read_bytes() == whole
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_an_adapter_of_zeros_never_parts_and_scores_as_the_base(
    call: Callable[[str], None], tmp_path: Path, make_adapter: Callable[[float], Path]
) -> None:
    folder = tmp_path / "run"
    call(f"eval/trajectory.py --adapter {make_adapter(0.0)} {SETTINGS} --output-dir {folder}")
    assert [row["position"] for row in rows_of(folder / "partings.csv")] == [""] * 3
    for text in ("reference", *SOURCES):
        for record in read(folder, f"likelihood-{text}").values():
            assert record["always_on"] == record["base"]
            assert record["prefix"] == record["base"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "--adapter names whose answers to follow; pass a folder or hub id"),
        ("--adapter {adapter} --gate prompt", "gate prompt draws no tokens with interventions"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    refused: Callable[[str, str], str],
    tmp_path: Path,
    make_adapter: Callable[[float], Path],
    arguments: str,
    message: str,
) -> None:
    refused(f"eval/trajectory.py {arguments.format(adapter=make_adapter(0.0))} --output-dir {tmp_path}/run", message)
    assert not (tmp_path / "run").exists()
