"""The command in this process, small: what it writes, how it goes on, and what it says of a mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reft_math.data.regression_rows import drawn, load_regression
from reft_math.regression import evaluation
from reft_math.regression.build import load_base, load_regressor
from reft_math.regression.regressor import Regressor
from reft_math.regression.trainer import RegressionTrainer

SMALL = "--train-size 64 --validation-size 8 --test-size 10 --epochs 1 --eval-steps 2"


@pytest.fixture
def raft(call: Callable[[str], None]) -> Callable[[str], None]:
    """``raft("--loss raft …")``: the command line in this process."""
    return lambda line: call(f"train/raft.py {line}")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def records(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records" / f"{name}.jsonl").read_text().splitlines()]


def results_without_when(folder: Path) -> dict[str, Any]:
    """``results.json`` but for the date, the command line and the settings that a resumed run need not repeat."""
    found = read(folder / "results.json")
    found["config"] = {key: value for key, value in found["config"].items() if key not in ("resume", "output_dir")}
    return {key: value for key, value in found.items() if key not in ("date", "command")}


# --- what it writes -------------------------------------------------------------------------------------------------


def test_writes_regressor_records_and_results(
    raft: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """RED with RAFT: every figure of the results is worked out again from the records, and these from the files."""
    raft(f"{SMALL} --output-dir {tmp_path}")
    results = read(tmp_path / "results.json")
    rows = drawn(load_regression("original1", "test"), 10)
    targets = np.array([row.target for row in rows])

    saved = load_regressor(tmp_path / "regressor")
    regressors = {"start": load_base(saved.regressor_config), "tuned": saved}
    assert list(results["evaluation"]) == list(regressors)
    for name, summary in results["evaluation"].items():
        found = {record["id"]: record for record in records(tmp_path, name)}
        predicted = np.array([found[row.id]["predictions"]["rail"] for row in rows])
        assert [found[row.id]["target"] for row in rows] == targets.tolist()
        assert predicted == pytest.approx(regressors[name].predict([row.text for row in rows], 1), rel=1e-4)
        assert list(summary["predictors"]) == ["rail", "rail_normalised", "mode", "median", "decoded"]
        rail = summary["predictors"]["rail"]
        assert rail["rmse"]["value"] == pytest.approx(np.sqrt(((predicted - targets) ** 2).mean()))
        assert rail["pearson"]["value"] == pytest.approx(np.corrcoef(predicted, targets)[0, 1])
        low, high = rail["rmse"]["interval_95"]
        assert low < rail["rmse"]["value"] < high
        assert summary["entropy"]["mean"] == pytest.approx(np.mean([record["entropy"] for record in found.values()]))
    changes = [results["evaluation"][name]["predictors"]["rail"]["rmse"]["value"] for name in ("start", "tuned")]
    assert changes[1] < changes[0]

    training = results["training"]
    assert (training["steps"], training["best_step"], training["trained_parameters"]) == ([0, 2, 4], 4, 4 * 2 * 384)
    assert training["rmse"][2] == min(training["rmse"])
    assert training == read(tmp_path / "regressor" / "training.json")
    mean = np.mean([row.target for row in drawn(load_regression("original1", "train"), 64)])
    assert results["rmse_of_training_mean"] == pytest.approx(np.sqrt(((mean - targets) ** 2).mean()))
    assert results["rows"] == {"train": 64, "validation": 8, "test": 10}
    assert results["predictor"] == "rail"
    assert results["config"]["learning_rate"] == 5e-3
    assert results["config"]["grid"] == results["regressor"]["grid"] == "0:9:1"
    assert {"torch", "transformers", "pyvene", "pyreft"} <= results["versions"].keys()

    table = capsys.readouterr().out
    assert "tuned, rail *" in table
    assert f"RMSE {results['rmse_of_training_mean']:.3f}" in table
    assert "they say nothing of a large language model" in table

    card = (tmp_path / "regressor" / "README.md").read_text(encoding="utf-8")
    assert f"| tuned, rail * | {results['evaluation']['tuned']['predictors']['rail']['rmse']['value']:.3f} |" in card
    assert "- **trained parameters**: 3,072" in card


READ_OFF = ["rail", "rail_normalised", "mode", "median"]


@pytest.mark.parametrize(
    ("line", "predictor", "predictors", "parameters"),
    [
        ("--tune full --loss head:logit --head-learning-rate 0.1", "head", ["head"], 864_128 + 1),
        ("--tune lora --loss ce --rank 2", "mode", [*READ_OFF, "decoded"], 81_920 // 4),
        (
            *("--tune loreft --loss mbr --normalised --layers 0-1", "rail_normalised"),
            *([*READ_OFF, "decoded"], 2 * (2 * 4 * 128 + 4)),
        ),
        ("--loss log", "rail", ["rail", "decoded"], 3072),
        (
            *("--grid 0:9:0.5 --added-tokens random --samples 2", "rail"),
            *([*READ_OFF, "decoded", "rail_sampled"], 3072 + 19 * 128),
        ),
        ("--bidirectional --grid 0:9:0.5 --scale-targets", "rail", READ_OFF, 3072),
        (
            "--random-start --optim adafactor --dropout 0.1 --template plain --schedule cosine --seed 3",
            "rail",
            [*READ_OFF, "decoded"],
            3072,
        ),
    ],
)
def test_every_way_to_a_number_is_trained_saved_and_reported(
    raft: Callable[[str], None],
    tmp_path: Path,
    line: str,
    predictor: str,
    predictors: list[str],
    parameters: int,
) -> None:
    raft(f"{SMALL} {line} --output-dir {tmp_path}")
    results = read(tmp_path / "results.json")
    assert results["predictor"] == predictor
    assert results["training"]["trained_parameters"] == parameters
    for summary in results["evaluation"].values():
        assert list(summary["predictors"]) == predictors
        assert (summary["entropy"] is None) == (predictor == "head")
    tuned = {record["text"]: record["predictions"] for record in records(tmp_path, "tuned")}
    assert tuned != {record["text"]: record["predictions"] for record in records(tmp_path, "start")}
    again = load_regressor(tmp_path / "regressor").predict(list(tuned))
    assert again == pytest.approx([numbers[predictor] for numbers in tuned.values()], rel=1e-4, abs=1e-6)
    if "--loss log" in line:
        assert results["config"]["bounds"] == "0,9"
        assert all(0 <= numbers["rail"] <= 9 for numbers in tuned.values())


def test_a_file_of_ones_own_with_a_grid_of_its_own(raft: Callable[[str], None], tmp_path: Path) -> None:
    lines = [f"Tom has {n} apples,{n}" for n in range(60)]
    (tmp_path / "mine.csv").write_text("\n".join(["text,target", *lines]) + "\n")
    with pytest.warns(UserWarning, match=r"training targets \(from 5[1-9] to 5[1-9]\) lie outside 0 to 50, which"):
        raft(f"{SMALL} --data {tmp_path}/mine.csv --grid 0:50:10 --output-dir {tmp_path}/run")
    assert read(tmp_path / "run" / "results.json")["rows"] == {"train": 39, "validation": 8, "test": 10}


def test_real_pairs_of_sentences_go_through(raft: Callable[[str], None], tmp_path: Path, shared_data: Path) -> None:
    raft(f"{SMALL} --data stsb:paper --prompt paper --data-dir {shared_data} --output-dir {tmp_path}")
    results = read(tmp_path / "results.json")
    assert (results["regressor"]["prompt"], results["regressor"]["template"]) == ("paper", "bare/1")
    assert results["regressor"]["grid"] == "1:5:1"
    assert results["evaluation"]["tuned"]["total"] == 10
    for record in records(tmp_path, "tuned"):
        assert record["id"].startswith("stsb/validation/")
        assert record["text"].endswith("with 0 being unrelated and 5 being related is equal to")


# --- how it goes on -------------------------------------------------------------------------------------------------


def test_a_run_stopped_in_training_and_again_in_evaluation_ends_as_one_in_peace(
    raft: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"{SMALL} --epochs 2 --loss head:mean --seed 2 --output-dir {tmp_path}"
    raft(f"{line}/whole")

    step = RegressionTrainer.training_step

    def stop_after_a_checkpoint(trainer: RegressionTrainer, *args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == 5:
            raise KeyboardInterrupt
        return step(trainer, *args, **kwargs)

    monkeypatch.setattr(RegressionTrainer, "training_step", stop_after_a_checkpoint)
    with pytest.raises(KeyboardInterrupt):
        raft(f"{line}/stopped")
    assert not (tmp_path / "stopped" / "regressor").exists()
    monkeypatch.setattr(RegressionTrainer, "training_step", step)

    evaluate = evaluation.evaluate_regressor

    def stop_when_tuned(*args: Any) -> Any:
        if "tuned" in args:
            raise KeyboardInterrupt
        return evaluate(*args)

    monkeypatch.setattr(evaluation, "evaluate_regressor", stop_when_tuned)
    with pytest.raises(KeyboardInterrupt):
        raft(f"{line}/stopped --resume")
    assert (tmp_path / "stopped" / "regressor").is_dir()
    monkeypatch.setattr(evaluation, "evaluate_regressor", evaluate)

    monkeypatch.setattr(RegressionTrainer, "train", lambda *args, **kwargs: pytest.fail("trained again"))
    raft(f"{line}/stopped --resume")
    whole = results_without_when(tmp_path / "whole")
    assert results_without_when(tmp_path / "stopped") == whole
    assert len(whole["training"]["steps"]) == 5
    for path in [*(tmp_path / "whole" / "records").iterdir(), *(tmp_path / "whole").glob("regressor/**/*.safetensors")]:
        assert path.read_bytes() == (tmp_path / "stopped" / path.relative_to(tmp_path / "whole")).read_bytes()


def test_a_finished_run_that_is_resumed_does_nothing_again(
    raft: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"{SMALL} --tune full --samples 2 --output-dir {tmp_path}"
    raft(line)
    before = results_without_when(tmp_path)
    files = {path: path.read_bytes() for path in (tmp_path / "records").iterdir()}
    assert len(files) == 2
    monkeypatch.setattr(RegressionTrainer, "train", lambda *args, **kwargs: pytest.fail("trained again"))
    monkeypatch.setattr(Regressor, "predictors", lambda *args, **kwargs: pytest.fail("predicted again"))
    raft(f"{line} --resume")
    assert results_without_when(tmp_path) == before
    assert all(path.read_bytes() == content for path, content in files.items())


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--loss squares", "loss must be one of raft, mbr, ce, log, head:logit, head:mean"),
        ("--loss head:big", "loss must be one of raft, mbr, ce, log, head:logit, head:mean"),
        ("--tune half", "argument --tune: invalid choice: 'half'"),
        ("--data {folder}/own.csv", "rows of one's own need a grid that reaches their targets; pass --grid"),
        ("--data {folder}/own.csv --loss log", "pass --bounds, such as --bounds 0,100"),
        ("--data nosuch --grid 1:5:1", 'unknown data set "nosuch": expected one of stsb, stsb:paper'),
        ("--data {folder}/small.csv --grid 0:9:1", "must have rows to train on, to choose by and to report on"),
        ("--data {folder}/none.csv --grid 0:9:1", "none.csv: No such file or directory"),
        ("--data stsb --data-dir {folder}", "stsb/train.csv: No such file or directory"),
        ("--loss log --grid 0:9:1", "which stands for 1; got --grid 0:9:1: leave it out"),
        ("--loss log --normalised", "normalised is for raft and mbr, which average over the grid; got loss log"),
        ("--loss ce --grid 5", "over one number always predict it; got grid 5: take two numbers or more"),
        ("--grid 1,1", "a grid names each number once; got '1,1'"),
        ("--bounds 0,9", "--bounds 0,9 is for scaled targets; pass --scale-targets too, or leave it out"),
        ("--scale-targets --bounds 9,0", "the lower one first; got"),
        ("--scale-targets --bounds 9", "--bounds takes two numbers, such as 0,5; got '9'"),
        ("--head-learning-rate 0.1", "--head-learning-rate is a head's; --loss raft has none: leave it out"),
        ("--loss head:mlp --head-learning-rate 0", "--head-learning-rate must be positive; got 0.0"),
        ("--rank 4", "--rank is LoReFT's or LoRA's; leave it out for --tune red"),
        ("--tune lora --rank 0", "--rank must be at least 1; got 0"),
        ("--tune loreft --rank 129", "rank must be at most the site's width 128; got 129"),
        (
            "--tune full --layers 1",
            "--site-path and --layers are for interventions; leave them out for --tune full",
        ),
        ("--site mlp", "has no site 'mlp'; it has ffn_up"),
        ("--layers 4", "layers must lie in 0-3, the model's decoder layers; got 4"),
        ("--grid 1:5", "a grid is written as lower:upper:resolution, such as 0:5:0.1"),
        ("--grid 1:5:0.3", "in whole steps of a positive resolution; got 1 to 5 by 0.3"),
        ("--grid one,two", "a grid is made of numbers such as 3 or 0.25; got 'one'"),
        ("--grid 1,2 --grid-texts é,ü", "the tokenizer cannot write the number 1: its text 'é' becomes the tokens"),
        ("--grid 1,2 --grid-texts Tom,Tom", "numbers need token strings of their own; 1 and 2 both become"),
        ("--grid-texts Tom,Ben", "every number needs a text; got 2 texts for 10 numbers"),
        ("--loss head:raft-all --grid 0:9:0.5", "head raft-all weighs single tokens"),
        ("--template letter", "template must be auto or one of"),
        ("--model no/such/model", "--model names a path, and nothing is there: no/such/model"),
        ("--patience 0", "--patience must be at least 1; got 0"),
        ("--temperature 0", "--temperature must be at least 1e-6 and finite (without it decoding is greedy); got 0.0"),
        ("--resume --overwrite", "exclude each other"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_and_nothing_is_written(
    raft: Callable[[str], None],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    message: str,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, count in (("own", 60), ("small", 5)):
        lines = [f"{n} apples,{n}" for n in range(count)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,target", *lines]) + "\n")
    with pytest.raises(SystemExit) as stopped:
        raft(f"{SMALL} --output-dir {tmp_path}/run {arguments.format(folder=tmp_path)}")
    assert stopped.value.code == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments", ["--data {folder}/seven.csv --grid 0:9:1", "--test-size 1", "--loss log --bounds 0,5"]
)
def test_what_cannot_be_evaluated_or_scaled_is_said_before_anything_is_written(
    raft: Callable[[str], None], tmp_path: Path, arguments: str
) -> None:
    (tmp_path / "seven.csv").write_text("\n".join(["text,target", *(f"{n} apples,{n}" for n in range(7))]) + "\n")
    with pytest.raises(SystemExit) as stopped:
        raft(f"{SMALL} --output-dir {tmp_path}/run {arguments.format(folder=tmp_path)}")
    assert stopped.value.code == 2
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_its_own_settings_only(
    raft: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    raft(f"{SMALL} --train-size 16 --output-dir {tmp_path}")
    raft(f"{SMALL} --train-size 16 --output-dir {tmp_path} --resume --eval-batch-size 3")
    for arguments, message in [
        ("", "is in use; pass --resume to go on"),
        ("--resume --loss mbr", "loss was 'raft' and is 'mbr'"),
        ("--resume --seed 1", "seed was 0 and is 1"),
    ]:
        with pytest.raises(SystemExit) as stopped:
            raft(f"{SMALL} --train-size 16 --output-dir {tmp_path} {arguments}")
        assert stopped.value.code == 2
        assert message in capfd.readouterr().err
