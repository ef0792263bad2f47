"""What the benchmark counts, on scripts that take a kill well and badly."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = """
import os, pathlib, sys, time
from reft_math.files.atomic import write_json
from reft_math.files.records import RecordFile

folder = pathlib.Path(sys.argv[sys.argv.index("--output-dir") + 1])
path = folder / "records" / "base.jsonl"
{start}
records = RecordFile(path)
for number in range(20):
    if str(number) not in records.done:
        time.sleep(0.01)
        records.append([{{"id": str(number), "value": {value}}}])
write_json(folder / "results.json", {{"date": time.time(), "rows": 20}})
"""


@pytest.mark.parametrize(
    ("start", "value", "is_whole"),
    [("", "number", True), ("path.unlink(missing_ok=True)", "os.getpid()", False), ("", "os.getpid()", False)],
)
def test_kills_are_counted_and_what_they_cost(
    start: str, value: str, is_whole: bool, command: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(start=start, value=value))
    faults = command("benchmarks/faults.py")
    faults.START_S = 0.2  # type: ignore[attr-defined]
    found = faults.torment(str(tmp_path / "script.py"), tmp_path / "runs", 1, 6, random.Random(0))
    assert found["kills"] == 6
    assert found["at_start"] > 0
    assert found["rows_at_kills"] > 0
    assert found["equal"] == (found["runs"] if is_whole else 0)
    assert (found["lost_rows"] > 0) == bool(start)


def test_a_command_that_fails_is_an_error(command: Callable[[str], ModuleType], tmp_path: Path) -> None:
    faults = command("benchmarks/faults.py")
    (tmp_path / "script.py").write_text("raise SystemExit(3)")
    with pytest.raises(faults.UserError, match="failed with exit code 3"):
        faults.torment(str(tmp_path / "script.py"), tmp_path / "runs", 1, 1, random.Random(0))
