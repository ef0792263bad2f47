from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from reft_math.comparison import Run
from reft_math.figures.norm_trace import norm_trace


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
    assert [text.get_text() for text in norm_axes.get_legend().get_texts()] == ["penalty", "target 0.54"]


def test_writes_png_and_svg(call: Callable[[str], None], run_folder: Path, tmp_path: Path) -> None:
    call(f"eval/norm_trace.py --runs {run_folder} --output {tmp_path}/figure")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "figure.svg").read_text()
