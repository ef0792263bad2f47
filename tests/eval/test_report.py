from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import reft_math.experiments.quick
from reft_math.experiments.quick import Experiment

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results" / "gsm8k"
    folder.mkdir(parents=True)
    (folder / "run_config.json").write_text(json.dumps({"command": "Gsm8kOptions", "model": "org/name"}))
    (folder / "results.json").write_text(json.dumps({"command": "python eval/gsm8k.py --model org/name"}))
    return folder.parent


def test_writes_the_page_of_a_folder(
    call: Callable[[str], None], results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(f"eval/report.py --results {results}")
    page = (results / "report.html").read_text(encoding="utf-8")
    assert capsys.readouterr().out.startswith(f"page: {results}/report.html (sections: 1, ")
    assert "Evaluation on GSM8K: gsm8k" in page
    assert f"Results in {results}" in page
    call(f"eval/report.py --results {results} --output {results}/new/page.html")  # the first page is no result
    assert (results / "new" / "page.html").read_text(encoding="utf-8").count("<section") == 1


def test_quick_runs_the_experiments_and_makes_their_page(
    call: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A light one of the real commands stands for all."""
    runs = tmp_path / "penalty"
    runs.mkdir()
    trace = {"step": [1, 2], "norm": [0.1, 0.5], "scale_norm": [0.0, 0.2]}
    (runs / "results.json").write_text(json.dumps({"bias_norm": {"target": 0.54, "trace": trace}}))
    command = f"eval/norm_trace.py --runs {runs} --output-dir {{results}}/norm_trace"
    monkeypatch.setattr(reft_math.experiments.quick, "EXPERIMENTS", [Experiment("norm_trace", command)])
    monkeypatch.chdir(tmp_path)
    call("eval/report.py --quick")
    page = (tmp_path / "results" / "quick" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/svg+xml;base64,") == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("[1/1] norm_trace … ")
    assert last.startswith("page: results/quick/report.html")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--results {folder}/gone", "--results must be a folder that can be read"),
        ("--results {folder} --output {folder}", "--output must be a file; {folder} is a folder"),
        ("--quick --results {folder} --output {folder}/gsm8k/results.json/a", "results.json is a file"),
        ("--quick --results {folder}/gsm8k/results.json", "results.json is a file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    refused: Callable[[str, str], str], results: Path, arguments: str, message: str
) -> None:
    written = refused(f"eval/report.py {arguments.format(folder=results)}", message.format(folder=results))
    assert written.count("\n") == 1


def test_torchrun_is_refused(
    call: Callable[[str], None], results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        call(f"eval/report.py --results {results}")
    assert capsys.readouterr().err == "error: a report is made by one process; run it without torchrun\n"
    assert not (results / "report.html").exists()


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import runpy, sys\nsys.argv = ['eval/report.py', '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
