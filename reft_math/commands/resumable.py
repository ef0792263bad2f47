"""Work on rows in batches, recorded one by one, shared among processes and continued where it was stopped."""

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
    """A row: its record is kept under its id."""

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
    """Does the work of every row that has no record yet; under ``torchrun`` each process a share of it.

    Batches are made from all rows before any is left out as done: what a batch as a whole decides, such as what is
    sampled in it, is decided alike in a stopped run that goes on.

    Args:
        rows: With ids of their own.
        length: What rows are sorted by, longest first: batches hold rows of like length, and memory runs out at once or
            never.
        work: Given a batch and those of its rows that have no record yet, the records of the latter, in their order. It
            may raise `Unfinished` with some of them, by id: these are recorded.
        records_path: JSONL file; finished rows in it are not done again. Each of several processes appends to a shard
            of its own beside it, and the main process gathers them, those that a stopped run left behind as well.
        name: Shown by the progress bar.
        batch_size: Rows at once.

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
    """The records of all processes."""
    state = process_state()
    if state.is_main_process:
        gather_shards(path)
    state.wait_for_everyone()
    return RecordFile(path)
