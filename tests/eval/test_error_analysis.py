from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reft_math.experiments.figures.error_analysis import error_figure
from reft_math.files.records import RecordFile
from reft_math.scoring.evaluate import Scorer

QUESTION = "Anna has 47 books. She finds 38 books. Then the number of books doubles. How many has she?"
COMPLETIONS = {
    "base": ["The answer is 188.", "47+38=85\n85*2=170\n#### 170", "47+38=85\n#### 85", "47+38=85\n85*2="],
    "prefix": ["47+38=75\n75*2=150\n#### 150", "47+36=83\n83*2=166\n#### 166", "47+38=85\n85*2=1700\n#### 1700"],
}


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run whose base is right once and whose prefix never."""
    with Scorer(is_numeric=True) as score:
        for name, completions in COMPLETIONS.items():
            records: list[dict[str, Any]] = [
                {"id": f"p{index}", "question": f"{QUESTION} {index}", "gold": "170", "completion": text}
                | {"num_tokens": len(text), "finished": not text.endswith("="), **scores}
                for index, (text, scores) in enumerate(
                    zip(completions, score([("170", text) for text in completions]), strict=True)
                )
            ]
            RecordFile(tmp_path / "run" / "records" / f"{name}.jsonl").append(records)
    (tmp_path / "run" / "results.json").write_text(json.dumps({"evaluation": {name: {} for name in COMPLETIONS}}))
    return tmp_path / "run"


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_shares_and_places_are_those_counted_by_hand(
    call: Callable[[str], None], run_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    call(f"eval/error_analysis.py --runs {run_folder} --output-dir {out}")
    errors = table(out / "errors.csv")
    counts = {
        decoder: {row["kind"]: int(row["count"]) for row in errors if row["decoder"] == decoder}
        for decoder in COMPLETIONS
    }
    assert counts == {
        "base": {"false equation": 0, "miscopied given": 0, "plan": 1, "unreadable": 2},
        "prefix": {"false equation": 2, "miscopied given": 1, "plan": 0, "unreadable": 0},
    }
    first = next(row for row in errors if row["decoder"] == "prefix")
    assert (first["problems"], first["wrong"], float(first["share"])) == ("3", "3", pytest.approx(2 / 3))
    length = len(COMPLETIONS["prefix"][2])
    assert float(first["character"]) == (0 + 9) / 2
    assert float(first["share_of_text"]) == pytest.approx(9 / length / 2)
    assert float(first["token"]) == 4.5, "a token a character here"

    records = [json.loads(line) for line in (out / "records" / "errors.jsonl").read_text().splitlines()]
    assert [(row["id"], row["text"]) for row in records if row["decoder"] == "prefix"] == [
        ("p0", "47+38=75"),
        ("p1", "36"),
        ("p2", "85*2=1700"),
    ]
    positions = table(out / "positions.csv")
    found = [(row["equations"], row["count"]) for row in positions if row["decoder"] == "prefix"]
    assert found == [("3", "1"), ("3", "1"), ("0", "0"), ("0", "0")]
    base, prefix = table(out / "equations.csv")
    assert [(row["problems"], row["equations"], row["count"]) for row in (base, prefix)] == [
        ("4", "4", "0"),
        ("3", "6", "2"),
    ]
    assert float(prefix["share"]) == float(prefix["difference"]) == pytest.approx(1 / 3)
    # A solution has one false equation of two, or none: no resample's share is above a half.
    assert 0 <= float(prefix["low"]) < 1 / 3 < float(prefix["high"]) <= 1 / 2
    assert [float(base[name]) for name in ("difference", "difference_low", "difference_high")] == [0, 0, 0]
    assert (prefix["ten_times"], prefix["tenth"]) == ("1", "0"), "85*2=1700"
    printed = capfd.readouterr().out
    assert "2 (67%)" in printed
    assert "33.3%" in printed
    assert "token 4" in printed
    for ending in ("png", "svg"):
        assert (out / f"errors.{ending}").stat().st_size > 1000

    results = json.loads((out / "results.json").read_text())
    left, right = error_figure(results["errors"], results["positions"]).axes
    assert [bar.get_width() for bar in left.containers[0]] == [0, pytest.approx(2 / 3)]
    assert [line.get_label() for line in right.lines] == ["run:base", "run:prefix"]


def test_completions_made_elsewhere_are_scored_first(
    call: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"question": f"{number} + 2?", "gold": str(number + 2), "completion": rf"\( {number} + 2 = 7 \)"}
        for number in (4, 5)
    ]
    (tmp_path / "made.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    call(f"eval/error_analysis.py --runs {tmp_path}/made.jsonl --output-dir {tmp_path}/out")
    (row, *_) = table(tmp_path / "out" / "errors.csv")
    assert (row["decoder"], row["wrong"], row["count"], row["token"]) == ("elsewhere", "1", "1", "")
    silent = [{**row, "completion": "no equation"} for row in rows]
    (tmp_path / "silent.jsonl").write_text("".join(json.dumps(row) + "\n" for row in silent))
    call(f"eval/error_analysis.py --runs {tmp_path}/silent.jsonl {tmp_path}/made.jsonl --output-dir {tmp_path}/beside")
    first, second = table(tmp_path / "beside" / "equations.csv")
    assert (first["equations"], second["equations"], second["count"]) == ("0", "2", "1")
    assert first["share"] == second["difference"] == "", "nothing to compare with"
    with pytest.raises(SystemExit):
        call(f"eval/error_analysis.py --output-dir {tmp_path}/none")
    assert "at least one output folder or file" in capfd.readouterr().err
