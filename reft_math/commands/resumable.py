"""Works on rows in batches, records each row, shares them among processes and resumes after a stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from reft_math.commands.processes import process_state
from reft_math.commands.progress import progress
from reft_math.errors import Unfinished
from reft_math.files.records import RecordFile, gather_shards, shard_path

Record = dict[str, Any]


class Identified(Protocol):
    """A row whose record is kept under its id."""

    @property
    def id(self) -> str: ...


Row = TypeVar("Row", bound=Identified)


def record_rows(
    rows: Sequence[Row],
    length: Callable[[Row], int],
    work: Callable[[Sequence[Row], Sequence[Row]], Sequence[Mapping[str, Any]]],
    records_path: Path,
    name: str,
    batch_size: int,
) -> list[Record]:
    """Does the work of every row that has no record yet; under ``torchrun`` each process does a share.

    Batches are made from all rows before finished ones are left out, so that a resumed run has the same batches and
    draws the same samples.

    Args:
        rows: Rows with unique ids.
        length: Sort key of rows, longest first: batches hold rows of similar length, and memory runs out at once or
            never.
        work: Takes a batch and those of its rows that have no record yet, and returns the latter's records in order.
            It may raise `Unfinished` with some of them, by id: these are recorded.
        records_path: JSONL file; finished rows in it are not done again. Each of several processes appends to its own
            shard beside it, and the main process gathers all shards, also those left by a stopped run.
        name: Text of the progress bar.
        batch_size: Rows per batch.

    Returns:
        One record per row, in the order of ``rows``; in every process.
    """
    state = process_state()
    records = _gathered(records_path)
    by_length = sorted(rows, key=lambda row: -length(row))
    size = min(batch_size, -(-len(rows) // state.num_processes))
    batches = [by_length[start : start + size] for start in range(0, len(rows), size)]
    mine = batches[state.process_index :: state.num_processes]
    done = records.done.keys()
    shard = RecordFile(shard_path(records_path, state.process_index)) if state.num_processes > 1 else records
    with progress(name=name, unit="row", total=sum(map(len, mine))) as bar:
        for batch in mine:
            missing = [row for row in batch if row.id not in done]
            if missing:
                try:
                    found = work(batch, missing)
                except Unfinished as stop:
                    shard.append({"id": name, **record} for name, record in stop.done.items())
                    raise
                shard.append({"id": row.id, **record} for row, record in zip(missing, found, strict=True))
            bar.update(len(batch))
    state.wait_for_everyone()
    records = _gathered(records_path)
    return [records.done[row.id] for row in rows]


def _gathered(path: Path) -> RecordFile:
    """Returns the records of all processes."""
    state = process_state()
    if state.is_main_process:
        gather_shards(path)
    state.wait_for_everyone()
    return RecordFile(path)
