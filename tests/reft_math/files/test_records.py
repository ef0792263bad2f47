from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from reft_math.errors import UserError
from reft_math.files.records import RecordFile, gather_shards, shard_path


def row(number: int) -> dict[str, Any]:
    return {"id": f"gsm8k/test/{number}", "completion": f"7·6 = {number}\n#### {number}\u2028", "strict": True}


def read(path: Path) -> list[dict[str, Any]]:
    content = path.read_bytes()
    assert content.endswith(b"\n")
    return [json.loads(line) for line in content[:-1].split(b"\n")]


def test_records_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "records.jsonl"
    records = RecordFile(path)
    records.append([])
    assert records.done == {}
    assert not path.exists()
    records.append([row(2), row(1)])
    records.append(row(number) for number in (3,))
    assert list(records.done.values()) == [row(2), row(1), row(3)]
    assert RecordFile(path).done == records.done
    assert read(path) == [row(2), row(1), row(3)]


def test_records_are_replaced_by_their_ids_and_appended_to(tmp_path: Path) -> None:
    records = RecordFile(tmp_path / "records.jsonl")
    records.append([row(0), row(1)])
    with records.path.open("ab") as file:
        file.write(b'{"id": "torn')
    records = RecordFile(records.path)
    records.replace([{**row(0), "strict": False}])
    records.append([row(2)])
    assert read(records.path) == list(records.done.values()) == [{**row(0), "strict": False}, row(1), row(2)]


def test_a_run_killed_at_any_byte_of_a_line_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    RecordFile(path).append([row(0), row(1)])
    first_line = path.read_bytes().index(b"\n") + 1
    whole = path.read_bytes()
    for length in range(first_line, len(whole) + 1):
        path.write_bytes(whole[:length])
        records = RecordFile(path)
        assert path.read_bytes() == whole[:length], "opening alone changes nothing"
        assert set(records.done) == ({row(0)["id"], row(1)["id"]} if length == len(whole) else {row(0)["id"]})
        records.append([row(number) for number in range(3) if row(number)["id"] not in records.done])
        assert read(path) == [row(0), row(1), row(2)]


def test_a_killed_process_leaves_what_it_finished(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    code = f"""
import os, signal
from reft_math.files.records import RecordFile, gather_shards, shard_path
records = RecordFile({str(path)!r})
records.append([{{"id": "a"}}])
with open({str(path)!r}, "ab", buffering=0) as file:
    file.write(b'{{"id": "b", "compl')
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    records = RecordFile(path)
    assert list(records.done) == ["a"]
    records.append([{"id": "b"}])
    assert read(path) == [{"id": "a"}, {"id": "b"}]


def test_a_write_that_failed_half_way_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        os.ftruncate(descriptor, os.fstat(descriptor).st_size - 5)
        raise OSError(errno.ENOSPC, "No space left on device")

    records = RecordFile(tmp_path / "records.jsonl")
    records.append([row(0)])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: .*records\.jsonl"):
            records.append([row(1)])
    assert list(records.done.values()) == [row(0)]
    records.append([row(1)])
    assert read(records.path) == [row(0), row(1)]


def test_wherever_an_append_is_killed_or_fails_the_rows_before_it_stay(
    tmp_path: Path, killed_at_every_call: Any, failing_at_every_call: Any
) -> None:
    path = tmp_path / "records.jsonl"

    def add() -> None:
        RecordFile(path).append([row(1), row(2)])

    for faults in (killed_at_every_call, failing_at_every_call):
        path.unlink(missing_ok=True)
        RecordFile(path).append([row(0)])
        torn = path.read_bytes() + b'{"id": "gsm8k/te'
        path.write_bytes(torn)
        found = []
        for _ in faults(add):
            found.append(list(RecordFile(path).done.values()))
            path.write_bytes(torn)
        assert len(found) >= 4, "open, truncate, write and sync"
        assert [rows for rows in found if rows not in ([row(0)], [row(0), row(1), row(2)])] == []
        assert read(path) == [row(0), row(1), row(2)]


def test_without_power_no_row_is_lost_that_was_appended(tmp_path: Path, lost_without_power: Any) -> None:
    records = RecordFile(tmp_path / "new" / "folder" / "records.jsonl")
    for number in range(2):
        assert lost_without_power(lambda number=number: records.append([row(number)]), tmp_path) == []


@pytest.mark.parametrize("bad", [b"", b'{"id": "b"', b"[1]", b'{"id": 3}', b'{"name": "b"}', b'{"id": "\xff"}'])
def test_a_malformed_line_is_named(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"id": "a"}\n' + bad + b'\n{"id": "c"}\n')
    with pytest.raises(UserError, match=r"records\.jsonl, line 2"):
        RecordFile(path)


def test_of_a_long_malformed_line_the_beginning_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"x" * 1000 + b"\n")
    with pytest.raises(UserError, match=f"got '{'x' * 60}'; delete"):
        RecordFile(path)


def test_duplicate_ids_are_named_with_both_lines(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"id": "a"}\n{"id": "b"}\n{"id": "a"}\n')
    with pytest.raises(UserError, match=r"'a' in lines 1 and 3"):
        RecordFile(path)


@pytest.mark.parametrize("second", [{"id": "a"}, {"id": "b"}, {"id": 3}, {"name": "c"}])
def test_nothing_of_a_batch_with_a_bad_id_is_written(tmp_path: Path, second: dict[str, Any]) -> None:
    records = RecordFile(tmp_path / "records.jsonl")
    records.append([{"id": "a"}])
    with pytest.raises(ValueError, match="new to"):
        records.append([{"id": "b"}, second])
    assert read(records.path) == [{"id": "a"}]
    assert list(records.done) == ["a"]


def test_nothing_of_a_batch_that_is_not_json_is_written(tmp_path: Path) -> None:
    records = RecordFile(tmp_path / "records.jsonl")
    with pytest.raises(TypeError):
        records.append([{"id": "a"}, {"id": "b", "value": object()}])
    assert not records.path.exists()
    assert records.done == {}


# --- shards ------------------------------------------------------------------------------------------------------


def test_shards_are_gathered_once_and_deleted(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    RecordFile(path).append([{"id": "a"}])
    RecordFile(shard_path(path, 0)).append([{"id": "b"}, {"id": "c"}])
    RecordFile(shard_path(path, 11)).append([{"id": "d"}])
    RecordFile(shard_path(tmp_path / "other.jsonl", 0)).append([{"id": "z"}])
    for _ in range(2):
        gather_shards(path)
        assert list(RecordFile(path).done) == ["a", "b", "c", "d"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["other.shard-0.jsonl", "run.jsonl"]


def test_a_gathering_killed_at_any_call_is_completed_by_the_next(tmp_path: Path, killed_at_every_call: Any) -> None:
    path = tmp_path / "run.jsonl"

    def scatter() -> None:
        path.unlink(missing_ok=True)
        for process in range(2):
            RecordFile(shard_path(path, process)).append([row(process)])

    scatter()
    for _ in killed_at_every_call(lambda: gather_shards(path)):
        gather_shards(path)
        assert read(path) == [row(0), row(1)]
        scatter()
    assert read(path) == [row(0), row(1)]


@pytest.mark.parametrize("kept", range(0, 45, 4))
def test_a_gathering_stopped_anywhere_is_completed_by_the_next(tmp_path: Path, kept: int) -> None:
    """What a kill leaves: part of the shards' bytes in the whole file, the shards not yet deleted, one of them torn."""
    path = tmp_path / "run.jsonl"
    shards = [[{"id": "a", "n": 1}, {"id": "b", "n": 2}], [{"id": "c", "n": 3}]]
    for process, records in enumerate(shards):
        RecordFile(shard_path(path, process)).append(records)
    with shard_path(path, 1).open("ab") as file:
        file.write(b'{"id": "d", "n"')
    whole = b"".join(shard_path(path, process).read_bytes() for process in range(2))
    path.write_bytes(whole[:kept])
    gather_shards(path)
    assert list(RecordFile(path).done.values()) == [*shards[0], *shards[1]]


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="records are a file, and this is a folder"):
        RecordFile(tmp_path)
