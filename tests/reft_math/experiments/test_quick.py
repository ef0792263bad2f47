from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

import pytest

from reft_math.commands.parser import parse
from reft_math.errors import UserError
from reft_math.experiments.quick import EXPERIMENTS, Experiment, duration, run_suite

ROOT = Path(__file__).resolve().parents[3]

# Writes its arguments down; starts its folder as a run does, and fails where there is a file that says so.
SCRIPT = """
import os, pathlib, sys
assert os.environ["REFT_MATH_PARENT"] == str(os.getppid())  # it does not outlive the suite
root = pathlib.Path(__file__).parent
folder = pathlib.Path(sys.argv[sys.argv.index("--output-dir") + 1])
folder.mkdir(exist_ok=True)
(folder / "run_config.json").write_text("{}")
with (root / "calls").open("a") as calls:
    print(*sys.argv[1:], file=calls)
print("at work")
if (root / f"{folder.name} fails").exists():
    sys.exit("ValueError: no luck")
"""
TWO = (
    Experiment("first", "eval/script.py --size 3 --output-dir {results}/first"),
    Experiment("second", "eval/script.py --runs {results}/first --output-dir {results}/second"),
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "script.py").write_text(SCRIPT)
    return tmp_path


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "some results"


def calls(root: Path) -> list[str]:
    return (root / "eval" / "calls").read_text().splitlines()


def test_runs_each_once_in_order_with_a_line_and_a_log(
    root: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_suite(TWO, root, results)
    first, second = (f"--output-dir {results}/{name}" for name in ("first", "second"))
    assert calls(root) == [f"--size 3 {first}", f"--runs {results}/first {second}"]
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r"\d+ s$", "_ s", line) for line in lines] == ["[1/2] first … _ s", "[2/2] second … _ s"]
    log = (results / "second.log").read_text().splitlines()
    assert shlex.split(log[0])[-2:] == ["--output-dir", f"{results}/second"]
    assert log[1:] == ["at work"]

    run_suite(TWO, root, results)
    assert len(calls(root)) == 2
    assert [line.rpartition(", ")[2] for line in capsys.readouterr().out.splitlines()] == ["done before"] * 2


def test_a_failure_is_named_and_the_same_command_goes_on_from_there(
    root: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = root / "eval" / "first fails"
    mark.touch()
    message = r"experiment first failed with exit code 1: ValueError: no luck \(log: .*/first\.log\)"
    with pytest.raises(UserError, match=message):
        run_suite(TWO, root, results)
    assert re.fullmatch(r"\[1/2\] first … failed after \d+ s\n", capsys.readouterr().out)
    assert len(calls(root)) == 1
    mark.unlink()
    (root / "eval" / "second fails").touch()
    with pytest.raises(UserError, match="experiment second failed"):
        run_suite(TWO, root, results)
    (root / "eval" / "second fails").unlink()
    run_suite(TWO, root, results)
    assert [("second" in line.rpartition("--output-dir")[2], line.endswith("--resume")) for line in calls(root)] == [
        (False, False),
        (False, True),
        (True, False),
        (True, True),
    ]


def test_a_deleted_folder_is_made_anew(root: Path, results: Path) -> None:
    run_suite(TWO, root, results)
    (results / "second" / "run_config.json").unlink()
    (results / "second").rmdir()
    run_suite(TWO, root, results)
    assert len(calls(root)) == 3
    assert calls(root)[2] == calls(root)[1]


def test_what_was_made_from_something_made_again_is_made_anew_too(root: Path, results: Path) -> None:
    run_suite(TWO, root, results)
    (results / "first" / "run_config.json").unlink()
    (results / "first").rmdir()
    run_suite(TWO, root, results)
    again = calls(root)[2:]
    assert len(again) == 2
    assert again[0] == calls(root)[0]
    assert again[1] == f"{calls(root)[1]} --overwrite"
    run_suite(TWO, root, results)
    assert len(calls(root)) == 4


def test_another_plan_or_a_missing_script_stops_before_anything_runs(root: Path, results: Path) -> None:
    missing = Experiment("third", "eval/other.py --output-dir {results}/third")
    with pytest.raises(UserError, match=r"experiment third needs .*eval/other\.py, which is not there"):
        run_suite([*TWO, missing], root, results)
    assert not results.exists()
    run_suite(TWO[:1], root, results)
    changed = Experiment("first", "eval/script.py --size 4 --output-dir {results}/first")
    with pytest.raises(UserError, match=r"some results/first was made by another command, .*--size 3"):
        run_suite([TWO[1], changed], root, results)
    assert len(calls(root)) == 1


@pytest.mark.parametrize(
    "content",
    [
        "{",
        '{"first": 3}',
        '{"first": {"command": "a", "seconds": NaN, "time": 1}}',
        '{"first": {"command": "a", "seconds": 1e999, "time": 1}}',
        '{"first": {"command": "a", "seconds": 1}}',
    ],
)
def test_an_unreadable_list_of_what_is_finished_is_one_line(root: Path, results: Path, content: str) -> None:
    results.mkdir()
    (results / "finished.json").write_text(content)
    with pytest.raises(UserError, match=r"finished\.json cannot be read"):
        run_suite(TWO, root, results)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (41.2, "41 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (3600, "60 min 00 s")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_commands_of_the_plan_are_accepted_and_read_only_what_was_made_before(
    experiment: Experiment, command: Callable[[str], ModuleType]
) -> None:
    script, *arguments = shlex.split(experiment.command.format(results="made"))
    module = command(script)
    options = parse(get_type_hints(module.main)["options"], None, arguments)
    output = getattr(options, "output_dir", None) or str(Path(options.output).parent)
    assert output == f"made/{experiment.name}"
    names = [other.name for other in EXPERIMENTS]
    earlier = names[: names.index(experiment.name) + 1]
    assert set(re.findall(r"\{results\}/([^/ ]+)", experiment.command)) <= set(earlier)
    assert names.count(experiment.name) == 1
