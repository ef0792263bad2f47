"""The norm sweep and the ablation in this process, small: what they write, and how they go on."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interventions import PrefixReftModel
from reft_math.commands.options.prefix import PrefixOptions
from reft_math.experiments.number_directions import number_directions
from reft_math.experiments.trial_runs import options_of
from reft_math.files.records import RecordFile
from reft_math.models import load_model
from reft_math.training import prefix_training

SMALL = "--train-size 32 --batch-size 8 --epochs 1 --eval-size 6 --calibration-size 3 --max-new-tokens 5"
SWEEP = "eval/norm_sweep.py --target-norms 0.2 0.1 --seeds 2 --project-number-direction"


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".csv"}


def solved(folder: Path, decoder: str) -> list[bool]:
    return [record["correct"] for record in RecordFile(folder / "records" / f"{decoder}.jsonl").done.values()]


@pytest.fixture
def swept(call: Callable[[str], None], sweep_folder: Path, tiny_base: str) -> Path:
    """Run once; as the second test leaves it, it is the same."""
    if not (sweep_folder / "results.json").exists():
        call(f"{SWEEP} --model {tiny_base} {SMALL} --output-dir {sweep_folder}")
    return sweep_folder


@pytest.fixture(scope="module")
def sweep_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep") / "run"


def test_a_sweep_trains_each_norm_and_seed_on_both_curves(swept: Path) -> None:
    trials = table(swept / "trials.csv")
    assert len(trials) == 2 * 2 * 2 * 2
    for row in trials:
        curve = "kept-off" if row["curve"] == "b kept off the number direction" else "free"
        folder = swept / "trials" / f"{curve}-{float(row['target_norm']):g}-seed{row['seed']}"
        outcomes = solved(folder, row["decoder"])
        assert (int(row["correct"]), int(row["total"])) == (sum(outcomes), 6)
        assert float(row["achieved"]) <= float(row["target_norm"]) * 1.05
        results = json.loads((folder / "results.json").read_text())
        assert results["config"]["target_norm"] == float(row["target_norm"])
        assert results["validation"][row["decoder"]]["total"] == 3
    for row in table(swept / "norms.csv"):
        members = [
            trial
            for trial in trials
            if all(float(trial[name]) == float(row[name]) for name in ("target_norm",))
            and all(trial[name] == row[name] for name in ("curve", "decoder"))
        ]
        assert len(members) == int(row["seeds"]) == 2
        for name in ("accuracy", "achieved", "validation"):
            assert float(row[name]) == pytest.approx(np.mean([float(trial[name]) for trial in members]))
    assert {path.name for path in swept.iterdir()} >= {
        "norm_sweep.png",
        "norm_sweep.svg",
        "shares.csv",
    }
    assert json.loads((swept / "results.json").read_text())["evaluation"]["base"]["total"] == 6


def test_only_the_second_curves_biases_are_off_the_number_direction(swept: Path, tiny_base: str) -> None:
    """Against the direction refitted here, and the share that the table reports."""
    options = options_of(PrefixOptions(model=tiny_base, train_size=32), swept / "nowhere")
    directions = number_directions(prefix_training.prepare(options).job, "ffn_up")
    cosines: dict[str, list[float]] = {"free": [], "kept-off": []}
    for folder in (swept / "trials").iterdir():
        reft_model = PrefixReftModel.from_pretrained(folder / "adapter", load_model(tiny_base))
        found = [
            abs(float(torch.cosine_similarity(bias.detach().double(), torch.from_numpy(directions[layer]), dim=0)))
            for layer, bias in reft_model.biases().items()
        ]
        cosines[folder.name.rpartition("-0.")[0]].append(float(np.mean(found)))
        reported = json.loads((folder / "results.json").read_text())["number_direction"]["bias"]
        assert reported == pytest.approx(np.mean(found), abs=1e-6)
    assert max(cosines["kept-off"]) < 1e-5
    assert min(cosines["free"]) > 1e-3


def test_a_stopped_sweep_runs_the_trials_that_are_missing(
    call: Callable[[str], None], swept: Path, tiny_base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(swept)
    for name in ("results.json", "norms.csv", "norm_sweep.png"):
        (swept / name).unlink()
    shutil.rmtree(swept / "trials" / "free-0.1-seed1")  # never begun
    (swept / "trials" / "kept-off-0.2-seed0" / "results.json").unlink()  # stopped before its end
    trained: list[Any] = []
    train = prefix_training.train
    monkeypatch.setattr(prefix_training, "train", lambda prefix: trained.append(prefix.options) or train(prefix))
    call(f"{SWEEP} --model {tiny_base} {SMALL} --output-dir {swept} --resume")
    assert [(item.target_norm, item.seed, item.project_number_direction) for item in trained] == [
        (0.1, 1, False),
        (0.2, 0, True),
    ]
    assert files(swept) == before


def test_a_sweep_goes_on_with_more_norms_and_the_bias_alone(
    call: Callable[[str], None], swept: Path, tiny_base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Any] = []
    train = prefix_training.train
    monkeypatch.setattr(prefix_training, "train", lambda prefix: trained.append(prefix.options) or train(prefix))
    other = SWEEP.replace("0.2 0.1", "0.1 0.05")
    call(f"{other} --bias-alone --model {tiny_base} {SMALL} --output-dir {swept} --resume")
    assert {(item.target_norm, item.intervention) for item in trained} == {(0.05, "red"), (0.05, "bias"), (0.1, "bias")}
    assert len(trained) == 2 * 2 + 2 * 2
    rows = table(swept / "norms.csv")
    assert {row["target_norm"] for row in rows} == {"0.05", "0.1"}
    assert len({row["curve"] for row in rows}) == 3


def test_an_ablation_has_eight_combinations(call: Callable[[str], None], tmp_path: Path, tiny_base: str) -> None:
    call(f"eval/ablation.py --k 3 --seeds 1 --target-norm 0.03 --model {tiny_base} {SMALL} --output-dir {tmp_path}/run")
    cells = table(tmp_path / "run" / "cells.csv")
    assert len({(row["truncation"], row["norm_control"], row["gate"]) for row in cells}) == 8
    for row in cells:
        cut, held, gated = (row[name] == "True" for name in ("truncation", "norm_control", "gate"))
        folder = tmp_path / "run" / "trials" / f"{'k3' if cut else 'whole'}-{'held' if held else 'free'}-seed0"
        config = json.loads((folder / "run_config.json").read_text())
        assert config["full_fraction"] == (0.0 if cut else 1.0)
        assert config["norm_control"] == ("pid" if held else "none")
        assert (float(row["achieved"]) <= 0.03 * 1.05) == held
        outcomes = solved(folder, "gated" if gated else "always_on")
        assert float(row["accuracy"]) == pytest.approx(np.mean(outcomes))
    assert len(table(tmp_path / "run" / "effects.csv")) == 6
    assert {path.suffix for path in (tmp_path / "run").glob("ablation.*")} == {".png", ".svg"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("norm_sweep.py --norm-control none", "needs them held"),
        ("norm_sweep.py --bias-alone --intervention bias", "beside RED's"),
        ("norm_sweep.py --target-norms 0.5 0.5", "each once"),
        ("norm_sweep.py --target-norms 0 1", "positive"),
        ("norm_sweep.py --target-norms 1 nan", "positive"),
        ("norm_sweep.py --seeds 0", "at least 1"),
        ("norm_sweep.py --project-number-direction --intervention loreft", "for red"),
        ("ablation.py --norm-control none", "switched on and off here"),
        ("ablation.py --full-fraction 0.5", "leave --full-fraction out"),
        ("ablation.py --gate always", "beside always on"),
        ("ablation.py --gate off", "beside always on"),
        ("ablation.py --no-calibrate-gate", "beside always on"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    refused: Callable[[str, str], str], tmp_path: Path, line: str, message: str
) -> None:
    refused(f"eval/{line} --output-dir {tmp_path}/run", message)
    assert not (tmp_path / "run").exists()
