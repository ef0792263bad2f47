"""Records of published tables, from which `eval/compare.py` or `compare_regression.py` makes each table again."""

from __future__ import annotations

import csv
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

RECORDS = Path(__file__).resolve().parents[1] / "docs" / "records"


@pytest.mark.parametrize("archive", sorted(RECORDS.glob("*.tar.xz")), ids=lambda path: path.name)
def test_a_published_table_comes_from_its_records(
    archive: Path, call: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(archive) as files:
        files.extractall(tmp_path, filter="data")
    published = (archive.parent / archive.name.replace(".tar.xz", ".csv")).read_text(encoding="utf-8")
    runs = dict.fromkeys(row["run"] for row in csv.DictReader(published.splitlines()))
    monkeypatch.chdir(tmp_path)
    command, table = ("compare.py --any-template --shared-only", "comparison.csv")
    if "stsb" in archive.name:
        command, table = ("compare_regression.py", "table.csv")
    call(f"eval/{command} --runs {' '.join(runs)} --output-dir table")
    assert (tmp_path / "table" / table).read_text(encoding="utf-8") == published


def test_records_are_small() -> None:
    assert sum(path.stat().st_size for path in RECORDS.glob("*")) < 4 * 2**20
