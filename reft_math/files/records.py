"""Stores evaluation records as JSON lines, from which a stopped run resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from reft_math.errors import UserError
from reft_math.files.atomic import make_folder, named, sync, write_text
from reft_math.files.strict import parse_json


class RecordFile:
    """One JSON object with a unique ``id`` per line; a record counts once its newline is on disk.

    A last line without newline is the rest of a killed write: it is not in `done`, and the next `append` cuts it off.
    One process writes at a time.

    Args:
        path: The file; it need not exist.

    Raises:
        UserError: If a complete line is not such an object, two lines share an id, or the path is a folder.

    Attributes:
        done: The finished records by id, in their order.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise UserError(
                f"{self.path}: records are a file, and this is a folder; delete it or choose another folder"
            )
        content = self.path.read_bytes() if self.path.exists() else b""
        *lines, rest = content.split(b"\n")
        self.done: dict[str, dict[str, Any]] = self._read(lines)
        self._whole = len(content) - len(rest)
        self._is_torn = bool(rest)

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Writes the records and returns when they are on disk; checks all of them before writing any.

        Args:
            records: JSON objects, each with an ``id`` that is not yet in `done`.

        Raises:
            ValueError: If an id is missing or not new.
            TypeError: If a record cannot be written as JSON.
        """
        new: dict[str, dict[str, Any]] = {}
        for record in records:
            name = record.get("id")
            if not isinstance(name, str) or name in self.done or name in new:
                raise ValueError(f"a record needs an id that is text and new to {self.path}, got {name!r}")
            new[name] = record
        if new:
            self._write("".join(json.dumps(record) + "\n" for record in new.values()).encode())
            self.done.update(new)

    def replace(self, records: Iterable[dict[str, Any]]) -> None:
        """Rewrites the file, with these records in place of those with the same ids."""
        done = {**self.done, **{record["id"]: record for record in records}}
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in done.values()))
        self.done, self._whole, self._is_torn = done, self.path.stat().st_size, False

    def _write(self, lines: bytes) -> None:
        make_folder(self.path.parent)
        with named(self.path), self.path.open("ab") as file:
            if self._is_torn:
                file.truncate(self._whole)
            self._is_torn = True  # the next write cuts off one that fails half-way, as on a full disk
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
            if self._whole == 0:
                sync(self.path.parent)
            self._whole = file.tell()
            self._is_torn = False

    def _read(self, lines: list[bytes]) -> dict[str, dict[str, Any]]:
        done: dict[str, dict[str, Any]] = {}
        line_of: dict[str, int] = {}
        for number, line in enumerate(lines, start=1):
            record = self._record(number, line)
            name = record["id"]
            if name in done:
                raise UserError(
                    f"{self.path}: an id stands once in a record file, got {name!r} in lines {line_of[name]} and "
                    f"{number}; delete one of them"
                )
            done[name], line_of[name] = record, number
        return done

    def _record(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            record = parse_json(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("id"), str):
            raise UserError(
                f"{self.path}, line {number}: a record is a JSON object with a text id, got "
                f"{line[:60].decode(errors='replace')!r}; delete the line or choose another file"
            )
        return record


def shard_path(path: Path, process: int) -> Path:
    """Returns the file to which one of several processes writes its share of the records of ``path``."""
    return path.with_name(f"{path.stem}.shard-{process}{path.suffix}")


def gather_shards(path: Path) -> None:
    """Moves the records of all shards beside ``path`` into it.

    A shard is deleted once its records are on disk in ``path``, and records already there are not added again: after a
    stop at any point the next call completes the work, without loss or duplicates.
    """
    shards = sorted(path.parent.glob(f"{path.stem}.shard-*{path.suffix}"))
    if not shards:
        return
    whole = RecordFile(path)
    for shard in shards:
        records = RecordFile(shard).done
        whole.append(record for name, record in records.items() if name not in whole.done)
        shard.unlink()
