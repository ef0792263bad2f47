from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reft_math.files.records import RecordFile
from reft_math.regression.comparison import changes
from reft_math.regression.distributions import distributions_figure
from reft_math.scoring.comparison import Run

TARGETS = [1.0, 2.0, 4.0, 5.0]


def write_run(folder: Path, predictions: list[float], loss: str = "raft", **regressor: Any) -> Path:
    """A run of train/raft.py, as far as this command reads it."""
    RecordFile(folder / "records" / "tuned.jsonl").append(
        {"id": f"r{index}", "text": f"t{index}", "target": target, "predictions": {"rail": prediction}}
        for index, (target, prediction) in enumerate(zip(TARGETS, predictions, strict=True))
    )
    rmse = float(np.sqrt(np.mean(np.square(np.subtract(predictions, TARGETS)))))
    results = {
        "regressor": {"random_seed": None, "tune": "red", "loss": loss, **regressor},
        "training": {"steps": [0, 10, 20], "rmse": [3.0, 1.0, 2.0], "best_step": 10, "trained_parameters": 3072},
        "predictor": "rail",
        "rmse_of_training_mean": 1.6,
        "evaluation": {"tuned": {"predictors": {"rail": {"rmse": {"value": rmse, "interval_95": [0.1, 0.9]}}}}},
    }
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_writes_the_table_with_differences_from_the_first_run_and_the_figure(
    call: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The second run errs by 1 everywhere, the first by 0.5: the difference is 0.5 whichever rows are drawn."""
    first = write_run(tmp_path / "first", [target + 0.5 for target in TARGETS])
    second = write_run(tmp_path / "second", [target - 1 for target in TARGETS], loss="mbr", random_seed=0)
    call(f"eval/compare_regression.py --runs {first} {second} --output-dir {tmp_path}/out")
    with (tmp_path / "out" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["first", "second"]
    assert [(row["base"], row["loss"], float(row["RMSE"])) for row in rows] == [
        ("pre-trained", "raft", 0.5),
        ("random", "mbr", 1.0),
    ]
    assert rows[0]["difference"] == ""
    assert float(rows[1]["difference"]) == pytest.approx(0.5)
    assert json.loads(rows[1]["difference_interval"]) == pytest.approx([0.5, 0.5])
    assert "second" in capfd.readouterr().out
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == {"convergence"}
    for ending in ("png", "svg"):
        assert (tmp_path / "out" / f"convergence.{ending}").stat().st_size > 1000


def test_seeds_are_averaged_and_validation_rows_choose_the_learning_rates(
    call: Callable[[str], None], tmp_path: Path
) -> None:
    """Errors by fiat: at the rate that is better on validation rows, test rows are worse."""
    runs, errors = [], {(rate, rows): [] for rate in (0.1, 0.2) for rows in (100, 1000)}
    for (rate, rows), found in errors.items():
        for seed in range(3):
            found.append((1 + rate) * (1 + seed) * 100 / rows)
            folder = write_run(tmp_path / f"{rate}-{rows}-{seed}", [target + found[-1] for target in TARGETS])
            results = json.loads((folder / "results.json").read_text())
            results["config"] = {"learning_rate": rate, "train_size": rows, "seed": seed, "output_dir": str(folder)}
            results["training"]["rmse"][1] = 1 / rate + seed
            results["rows"] = {"train": rows, "validation": 2, "test": 4}
            (folder / "results.json").write_text(json.dumps(results))
            runs.append(str(folder))
    call(f"eval/compare_regression.py --runs {' '.join(runs)} --output-dir {tmp_path}/out")
    seeds = json.loads((tmp_path / "out" / "results.json").read_text())["seeds"]
    assert [(row["lr"], row["rows"], row["runs"]) for row in seeds] == [(*key, 3) for key in errors]
    for row, found in zip(seeds, errors.values(), strict=True):
        assert (row["RMSE"], row["sd"]) == pytest.approx((np.mean(found), np.std(found, ddof=1)))
        assert row["validation"] == pytest.approx(1 / row["lr"] + 1)
        assert row["chosen"] == (row["lr"] == 0.2)
    assert (tmp_path / "out" / "training_rows.svg").stat().st_size > 1000


@pytest.mark.parametrize("probabilities", [None, [[0.1, 0.2], [0.3, 0.4]]])
def test_the_change_of_entropy_and_the_probabilities_are_drawn(
    tmp_path: Path, probabilities: list[list[float]] | None
) -> None:
    """Row 1 rises by 0.5, the others fall by 0.25; without probabilities, only that is drawn."""
    folder = write_run(tmp_path, TARGETS, grid="1,5", texts=None)
    (folder / "records" / "tuned.jsonl").unlink()
    for time, name in enumerate(("start", "tuned")):
        RecordFile(folder / "records" / f"{name}.jsonl").append(
            {
                "id": f"r{index}",
                "target": target,
                "entropy": 1 + time * (0.5 if index == 1 else -0.25),
                "probabilities": probabilities and [p * (index + 1) / 4 for p in probabilities[time]],
            }
            for index, target in enumerate(TARGETS)
        )
    run = Run.read(str(folder))
    pairs = changes(run)
    assert [after["entropy"] - before["entropy"] for before, after in pairs] == [-0.25, 0.5, -0.25, -0.25]
    histogram, *panels = distributions_figure([(run, pairs)]).axes
    counts = [bar.get_height() for bar in histogram.patches]  # type: ignore[attr-defined]
    assert (counts[0], counts[-1], sum(counts)) == (3, 1, 4)
    drawn = [[bar.get_height() for bar in panel.patches] for panel in panels]  # type: ignore[attr-defined]
    shares = (0.625, 0.25, 0.75, 1.0)  # the mean's, and those of the first, third and last row by target
    assert drawn == (
        [pytest.approx([p * share for p in (0.1, 0.2, 0.3, 0.4)]) for share in shares] if probabilities else [[]] * 4
    )


def test_runs_over_different_rows_are_not_compared(refused: Callable[[str, str], str], tmp_path: Path) -> None:
    first, second = (write_run(tmp_path / name, TARGETS) for name in ("first", "second"))
    RecordFile(second / "records" / "tuned.jsonl").append(
        [{"id": "more", "text": "t", "target": 1, "predictions": {"rail": 1}}]
    )
    line = f"eval/compare_regression.py --runs {first} {second} --output-dir {tmp_path}/out"
    assert refused(line, "has 5, ").count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("old", "new"), [('"t2"', '"t9"'), ('"target": 4.0', '"target": 4.5')])
def test_rows_that_say_something_else_are_other_rows_whatever_their_names(
    call: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str], old: str, new: str
) -> None:
    first, second = (write_run(tmp_path / name, TARGETS) for name in ("first", "second"))
    path = second / "records" / "tuned.jsonl"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(SystemExit):
        call(f"eval/compare_regression.py --runs {first} {second} --output-dir {tmp_path}/out")
    error = capfd.readouterr().err
    assert f"{second} and {first} differ in r2's text or target" in error
    assert error.count("\n") == 1


def test_different_prompts_are_compared_only_if_that_is_meant(
    call: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run(tmp_path / name, TARGETS, template=name) for name in ("chat", "plain")]
    line = f"eval/compare_regression.py --runs {runs[0]} {runs[1]} --output-dir {tmp_path}/out"
    with pytest.raises(SystemExit):
        call(line)
    assert f"{runs[0]} has chat, {runs[1]} has plain: pass --any-template" in capfd.readouterr().err
    call(f"{line} --any-template")
    assert (tmp_path / "out" / "table.csv").exists()


def test_a_run_of_another_command_is_refused(refused: Callable[[str, str], str], tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"evaluation": {}}')
    line = f"eval/compare_regression.py --runs {tmp_path} --output-dir {tmp_path}/out"
    message = f"{tmp_path} is no run of train/raft.py"
    assert refused(line, message) == f"error: {message}\n"


def test_a_run_without_its_records_is_refused(refused: Callable[[str, str], str], tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, TARGETS) for name in ("first", "second")]
    for run in runs:
        (run / "records" / "tuned.jsonl").unlink()
    line = f"eval/compare_regression.py --runs {runs[0]} {runs[1]} --output-dir {tmp_path}/out"
    assert refused(line, "tuned.jsonl has no rows").count("\n") == 1
