from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from reft_math.experiments.figures.norm_trace import norm_trace, trace_rows
from reft_math.scoring.comparison import Run


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "penalty"
    folder.mkdir()
    trace = {"step": [1, 2, 3], "norm": [0.1, 0.5, 0.54], "scale_norm": [0.0, 0.2, 0.3]}
    results = {"train_rows": 48, "bias_norm": {"target": 0.54, "trace": trace}}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_draws_the_trace_it_was_given(run_folder: Path) -> None:
    norm_axes, scale_axes = norm_trace([Run.read(str(run_folder))]).axes
    assert norm_axes.lines[0].get_xydata().tolist() == [[1, 0.1], [2, 0.5], [3, 0.54]]
    assert scale_axes.lines[0].get_ydata().tolist() == [0.0, 0.2, 0.3]
    assert [text.get_text() for text in norm_axes.get_legend().get_texts()] == [
        "penalty: overshoot 0.0%, settled at step 3, then off by +0.00%",
        "target 0.54",
    ]


def test_writes_figure_table_and_settings(call: Callable[[str], None], run_folder: Path, tmp_path: Path) -> None:
    call(f"eval/norm_trace.py --runs {run_folder} --output-dir {tmp_path}/run")
    assert (tmp_path / "run" / "norm_trace.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "run" / "norm_trace.svg").read_text()
    lines = (tmp_path / "run" / "norm_trace.csv").read_text().splitlines()
    assert lines == ["run,step,norm,scale_norm", "penalty,1,0.1,0.0", "penalty,2,0.5,0.2", "penalty,3,0.54,0.3"]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    norm = results["bias_norm"][str(run_folder)]
    assert (norm["target"], norm["overshoot"], norm["settling_step"]) == (0.54, 0.0, 3)
    assert results["config"]["runs"] == [str(run_folder)]


def test_runs_of_one_name_are_told_apart(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "other" / "penalty")
    runs = [Run.read(str(folder)) for folder in (run_folder, tmp_path / "other" / "penalty")]
    rows = trace_rows(runs)
    assert len(rows) == 6
    assert {row["run"] for row in rows} == {str(run.folder) for run in runs}
    labels = [str(line.get_label()).partition(":")[0] for line in norm_trace(runs).axes[0].lines]
    assert labels[:2] == [str(run.folder) for run in runs]


@pytest.mark.parametrize("norm", [None, {"target": 0.54, "trace": {}}])
def test_a_run_without_a_trace_is_refused(
    call: Callable[[str], None], run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], norm: object
) -> None:
    (run_folder / "results.json").write_text(json.dumps({"bias_norm": norm}))
    with pytest.raises(SystemExit):
        call(f"eval/norm_trace.py --runs {run_folder} --output-dir {tmp_path}/run")
    assert capsys.readouterr().err.startswith(f"error: {run_folder} held no bias norm")
    assert not (tmp_path / "run").exists()
