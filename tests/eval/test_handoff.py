"""The first tokens of a source, and the base after them."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from interventions import PrefixReftConfig, get_prefix_reft_model
from reft_math.experiments import handoff
from reft_math.files.records import RecordFile
from reft_math.models import load_model, load_tokenizer
from reft_math.probes.handoff import LENGTHS
from reft_math.scoring.statistics import wilson_interval

SOURCES = ("base", "always_on", "prefix")
SETTINGS = "--limit 8 --batch-size 3"


def save_adapter(folder: Path, strength: float, **config: Any) -> Path:
    """RED moved at random; with strength 0 it changes nothing."""
    model = get_prefix_reft_model(
        load_model("arithmetic"), PrefixReftConfig(**{"gate": "tokens:3", "template": "chat/1", **config})
    )
    torch.manual_seed(len(folder.name))
    for values in (*model.biases().values(), *model.scales().values()):
        values.data += strength * torch.randn_like(values)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def make_adapter(tmp_path: Path) -> Callable[..., Path]:
    """``make_adapter(name, strength)``"""
    return lambda name, strength, **config: save_adapter(tmp_path / name, strength, **config)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("handoff")


@pytest.fixture
def adapter(place: Path) -> Path:
    folder = place / "adapter"
    return folder if folder.exists() else save_adapter(folder, 0.7)


@pytest.fixture(scope="module")
def figures() -> list[Figure]:
    """What the finished run drew."""
    return []


@pytest.fixture
def finished(
    call: Callable[[str], None], place: Path, adapter: Path, figures: list[Figure], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A run, made once."""
    if not (place / "run").exists():
        draw = handoff.handoff_figure
        monkeypatch.setattr(handoff, "handoff_figure", lambda *args: figures.append(draw(*args)) or figures[-1])
        call(f"eval/handoff.py --adapter {adapter} {SETTINGS} --output-dir {place}/run")
    return place / "run"


def read(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    return RecordFile(folder / "records" / f"{name}.jsonl").done


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "handoff.csv").open() as file:
        return list(csv.DictReader(file))


def test_tables_and_figure_are_what_the_records_say(
    call: Callable[[str], None], tmp_path: Path, finished: Path, figures: list[Figure]
) -> None:
    """Everything recomputed from the records: the continuations by plain generation, the table, the figure's lines."""
    folder = finished
    call(f"eval/arithmetic.py {SETTINGS} --output-dir {tmp_path}/base")
    answers = {source: read(folder, source) for source in SOURCES}
    own = read(tmp_path / "base", "base")
    assert {name: {key: row[key] for key in own[name]} for name, row in answers["base"].items()} == own

    model, tokenizer = load_model("arithmetic"), load_tokenizer("arithmetic")
    handed_over = {source: read(folder, f"{source}-handed-over") for source in SOURCES}
    continued = 0
    for source, records in handed_over.items():
        assert set(records) == {f"{name}@{k}" for name in own for k in LENGTHS}
        for record in records.values():
            answer, k = answers[source][record["problem"]], record["k"]
            if k == 0:
                assert record["completion"] == own[record["problem"]]["completion"]
            elif len(answer["token_ids"]) <= k:
                assert record["completion"] == answer["completion"]
            elif record["continued"]:
                continued += 1
                prompt = tokenizer.apply_chat_template(
                    [{"role": "user", "content": answer["question"]}], return_tensors="pt", return_dict=True
                )["input_ids"]
                start = torch.cat([prompt, torch.tensor([answer["token_ids"][:k]])], dim=1)
                whole = model.generate(start, max_new_tokens=80 - k, eos_token_id=2, pad_token_id=0)[0]
                assert tokenizer.decode(whole[prompt.shape[1] :], skip_special_tokens=True) == record["completion"]
    assert continued > 8, "the adapter was too weak to test anything"

    def wrong(source: str) -> set[str]:
        return {name for name, row in answers[source].items() if not row["correct"]}

    sets = {
        "all problems": set(own),
        "problems always_on gets wrong": wrong("always_on"),
        "problems base gets wrong": wrong("base"),
    }
    expected = []
    for problems, ids in sets.items():
        for source, records in handed_over.items():
            for k in LENGTHS:
                rows = [records[f"{name}@{k}"] for name in ids]
                correct, total = sum(row["correct"] for row in rows), len(rows)
                numbers = [sum(row["continued"] for row in rows), correct, total, correct / total]
                values = [problems, source, k, *numbers, *wilson_interval(correct, total)]
                expected.append([str(value) for value in values])
    found = table(folder)
    assert list(found[0]) == ["problems", "source", "k", "continued", "correct", "total", "accuracy", "low", "high"]
    assert [list(row.values()) for row in found] == expected

    (figure,) = figures
    for axes, (problems, ids) in zip(figure.axes, sets.items(), strict=True):
        assert axes.get_title() == f"{problems} (n = {len(ids)})"
        for line, source in zip(axes.lines, SOURCES, strict=True):
            rows = [row for row in found if (row["problems"], row["source"]) == (problems, source)]
            assert line.get_ydata().tolist() == [float(row["accuracy"]) for row in rows]
    results = json.loads((folder / "results.json").read_text())
    assert [[str(value) for value in row.values()] for row in results["handoff"]] == expected
    assert results["evaluation"]["always_on"]["total"] == 8
    assert "commit" in results
    for ending in ("png", "svg"):
        assert (folder / f"handoff.{ending}").stat().st_size > 1000


def test_an_adapter_of_zeros_has_the_bases_curve(
    call: Callable[[str], None], tmp_path: Path, make_adapter: Callable[..., Path]
) -> None:
    folder = tmp_path / "run"
    call(f"eval/handoff.py --adapter {make_adapter('zeros', 0.0)} {SETTINGS} --output-dir {folder}")
    curves: dict[str, list[dict[str, str]]] = {source: [] for source in SOURCES}
    for row in table(folder):
        curves[row.pop("source")].append(row)
    assert curves["always_on"] == curves["base"]
    assert curves["prefix"] == curves["base"]
    assert len({row["correct"] for row in curves["base"] if row["problems"] == "all problems"}) == 1


def test_always_on_may_be_another_adapter(
    call: Callable[[str], None], tmp_path: Path, adapter: Path, finished: Path, make_adapter: Callable[..., Path]
) -> None:
    reft = make_adapter("reft", 0.7, gate="always")
    call(f"eval/handoff.py --adapter {adapter} {SETTINGS} --reft {reft} --output-dir {tmp_path}/run")
    call(f"eval/arithmetic.py --adapter {reft} {SETTINGS} --output-dir {tmp_path}/reft-alone")
    alone = read(tmp_path / "reft-alone", "adapter")
    found = read(tmp_path / "run", "always_on")
    assert {name: row["completion"] for name, row in found.items()} == {
        name: row["completion"] for name, row in alone.items()
    }
    assert read(tmp_path / "run", "prefix") == read(finished, "prefix")
    assert found != read(finished, "always_on")
    assert json.loads((tmp_path / "run" / "results.json").read_text())["reft"]["gate"] == "always"


def test_a_stopped_run_goes_on_and_ends_as_a_whole_one(
    call: Callable[[str], None], tmp_path: Path, adapter: Path, finished: Path
) -> None:
    """Killed in the middle of a problem's lengths: what is there is kept, the rest is what it would have been."""
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "records" / "always_on-handed-over.jsonl"
    whole, csv_before = path.read_bytes(), (tmp_path / "run" / "handoff.csv").read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:20]) + lines[20][:30])
    call(f"eval/handoff.py --adapter {adapter} {SETTINGS} --output-dir {tmp_path}/run --resume")
    assert path.read_bytes() == whole
    assert (tmp_path / "run" / "handoff.csv").read_bytes() == csv_before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "--adapter names whose first tokens to hand over; pass a folder or hub id"),
        ("--adapter {adapter} --reft {folder}/nothing", "--reft names a path, and nothing is there"),
        ("--adapter {adapter} --reft {other}", "--reft is put beside --adapter, so it needs the same base and"),
        ("--adapter {adapter} --limit 0", "--limit must be at least 1; got 0"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    refused: Callable[[str, str], str],
    tmp_path: Path,
    make_adapter: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    message: str,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    adapters = {"adapter": make_adapter("adapter", 0.0), "other": make_adapter("other", 0.0, template="plain/1")}
    refused(f"eval/handoff.py {arguments.format(folder=tmp_path, **adapters)} --output-dir {tmp_path}/run", message)
    assert not (tmp_path / "run").exists()
