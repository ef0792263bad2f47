"""Raw rows with their place for errors: a file's line, a list's row, or a hub split's row."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import Any, Literal, TypeVar

from reft_math.data.problem import Problem
from reft_math.errors import UserError
from reft_math.files.strict import is_whole, parse_json

Split = Literal["train", "validation", "test"]
Prompt = Literal["ours", "paper"]  # wording of rows with a number: the RAFT paper's (its table 6) or our own
T = TypeVar("T", str, int)

_GZIP = b"\x1f\x8b"
_KIND_NAMES: dict[type, str] = {str: "a string", int: "a whole number"}


@dataclass(frozen=True)
class Row:
    """The fields of one row, and their place.

    Attributes:
        place: Place for errors, e.g. ``"../data/gsm8k/train.jsonl, line 17"``.
        index: The row's number within its split, from 0.
        fields: The source's fields.
    """

    place: str
    index: int
    fields: Mapping[str, Any]

    def take(self, name: str, kind: type[T]) -> T:
        """Returns the field ``name``.

        Raises:
            UserError: If it is missing or not of type ``kind``.
        """
        value = self._value(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.error(f'field "{name}" must be {_KIND_NAMES[kind]}, got {_shown(value)}')
        return value

    def text(self, name: str) -> str:
        """Returns the field ``name`` as text without surrounding space.

        Raises:
            UserError: If it is missing, not a string, or blank.
        """
        text = self.take(name, str).strip()
        if not text:
            raise self.error(f'field "{name}" must not be empty')
        return text

    def answer(self, name: str) -> str:
        """Returns the field ``name``, text or number, as short text: ``"12"`` for ``12``, ``12.0`` and ``"12.0"``.

        Raises:
            UserError: If it is missing, blank, or neither text nor a finite number.
        """
        value = self._value(name)
        is_number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
        if isinstance(value, bool) or not (is_number or isinstance(value, str)):
            raise self.error(f'field "{name}" must be a string or a number, got {_shown(value)}')
        text = str(value).strip()
        if not text:
            raise self.error(f'field "{name}" must not be empty')
        return text.removesuffix(".0")

    def number(self, name: str) -> str:
        """Returns `answer` for a field whose answers are compared as numbers.

        Raises:
            UserError: As in `answer`, or if it is not a finite number.
        """
        return self.checked_number(name, self.answer(name))

    def checked_number(self, name: str, text: str) -> str:
        """Returns ``text``, read from the field ``name``, without thousands separators.

        Raises:
            UserError: If it is no finite number.
        """
        plain = text.replace(",", "")
        try:
            is_number = math.isfinite(float(plain))
        except ValueError:
            is_number = False
        if not is_number:
            raise self.error(f'field "{name}" must hold a number as its answer, got {reprlib.repr(text)}')
        return plain

    def error(self, message: str) -> UserError:
        """Returns an error that names this row's place."""
        return UserError(f"{self.place}: {message}")

    def _value(self, name: str) -> Any:
        if name not in self.fields:
            found = ", ".join(map(str, self.fields))
            raise self.error(f'field "{name}" is missing; the row has {found[:200] or "no fields"}')
        value = self.fields[name]
        if isinstance(value, str) and not is_whole(value):
            raise self.error(f'field "{name}" must be text, got {_shown(value)} with half a character')
        return value


@dataclass(frozen=True)
class HubDataset:
    """A data set on the Hugging Face hub.

    Attributes:
        id: Its id, e.g. ``"openai/gsm8k"``.
        splits: The hub's name for each of our splits; ``"train+test"`` joins two.
        config: The configuration, if the data set has several.
    """

    id: str
    splits: Mapping[Split, str]
    config: str | None = None


@dataclass(frozen=True)
class HubSource:
    """One data set: the places of its splits, and the parser of its rows.

    Attributes:
        name: Its name for ``--dataset``, and its folder under ``--data-dir``.
        files: The file in that folder for each split of the source.
        parse: Makes a problem from a row and the problem's id.
        hub: The copy on the hub, if one is known to be this set.
        id_field: The field that names a row in the problem's id; None for its index.
    """

    name: str
    files: Mapping[Split, str]
    parse: Callable[[Row, str], Problem]
    hub: HubDataset | None = None
    id_field: str | None = None

    def problems(self, split: Split, data_dir: str | None) -> list[Problem]:
        """Returns a split's problems, from ``data_dir`` if given, else from the hub.

        Raises:
            UserError: If the rows cannot be loaded, one of them is malformed, or two have the same id.
        """
        rows = self._rows(split, data_dir)
        keys = unique_keys(rows, lambda row: row.text(self.id_field) if self.id_field else str(row.index))
        return [self.parse(row, f"{self.name}/{split}/{key}") for row, key in zip(rows, keys, strict=True)]

    def _rows(self, split: Split, data_dir: str | None) -> list[Row]:
        if data_dir is not None:
            return file_rows(Path(data_dir) / self.name / self.files[split])
        if self.hub is None:
            raise UserError(
                f'"{self.name}" is not loaded from the Hugging Face hub, where no copy is known to be this set: '
                f"give its files with --data-dir DIR (DIR/{self.name}/{self.files[split]})"
            )
        return hub_rows(self.hub, split)


def unique_keys(rows: Iterable[Row], key_of: Callable[[Row], str]) -> list[str]:
    """Returns the key of each row within its split.

    Raises:
        UserError: Two rows have the same key.
    """
    places: dict[str, str] = {}
    for row in rows:
        key = key_of(row)
        if key in places:
            raise row.error(f'every row needs an id of its own, got "{key}", which is also that of {places[key]}')
        places[key] = row.place
    return list(places)


def file_rows(path: Path) -> list[Row]:
    """Reads a ``.jsonl`` file (one object per line, blank lines skipped) or a ``.json`` file (a list of objects).

    Raises:
        UserError: If the file cannot be read, holds no rows, or is not UTF-8 JSON of that form.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check --data-dir or the path in --dataset") from error
    check_unpacked(path, content)
    rows = list(_line_rows(path, content) if path.suffix.lower() == ".jsonl" else _list_rows(path, content))
    if not rows:
        raise UserError(f"{path} must hold at least one row, but is empty")
    return rows


def check_unpacked(path: Path, content: bytes) -> None:
    """Raises `UserError` for gzip data, whatever the file's name."""
    if content.startswith(_GZIP):
        raise UserError(f"{path} is packed by gzip; unpack it first (gunzip)")


def bad_byte(error: UnicodeDecodeError) -> str:
    """Returns the byte that is not UTF-8, as ``0xff``, from the error: a byte order mark shifts its offset from the
    file's."""
    return f"0x{error.object[error.start]:02x}"


def hub_rows(hub: HubDataset, split: Split) -> list[Row]:
    """Returns the rows of a split on the Hugging Face hub, or in its local cache.

    Raises:
        UserError: If the hub cannot be reached, or has no such data set for this account.
    """
    import datasets  # takes a second, which users of local files need not wait

    hub_split = hub.splits[split]
    try:
        data = datasets.load_dataset(hub.id, hub.config, split=hub_split)
    except Exception as error:  # the client's failures share no class, and nothing else runs here
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"cannot load {hub.id} ({hub_split}) from the Hugging Face hub: {reason}; "
            "check the name and the network, log in where access is restricted (hf auth login), or give the files "
            "with --data-dir"
        ) from error
    return [Row(f"{hub.id} ({hub_split}), row {index}", index, fields) for index, fields in enumerate(data)]


def _line_rows(path: Path, content: bytes) -> Iterator[Row]:
    numbered = ((number, line) for number, line in enumerate(content.split(b"\n"), start=1) if line.strip())
    for index, (number, line) in enumerate(numbered):
        yield _row(f"{path}, line {number}", index, _decoded(path, line, first_line=number))


def _list_rows(path: Path, content: bytes) -> Iterator[Row]:
    if not content.strip():
        return
    rows = _decoded(path, content, first_line=1)
    if not isinstance(rows, list):
        raise UserError(f"{path} must hold a JSON list of rows, got {_shown(rows)}; one row a line is a .jsonl file")
    for index, fields in enumerate(rows):
        yield _row(f"{path}, row {index}", index, fields)


def _decoded(path: Path, content: bytes, first_line: int) -> Any:
    try:
        return parse_json(content)
    except UnicodeDecodeError as error:
        line = first_line + error.object.count(b"\n", 0, error.start)
        raise UserError(f"{path}, line {line}: must be UTF-8 text, got byte {bad_byte(error)}") from error
    except JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise UserError(f"{path}, line {line}: must be JSON, got: {error.msg} (column {error.colno})") from error
    except ValueError as error:  # it gives no place
        place = f"{path}" if b"\n" in content else f"{path}, line {first_line}"
        raise UserError(f"{place}: must be plain JSON, got: {error}") from error


def _row(place: str, index: int, fields: Any) -> Row:
    if not isinstance(fields, dict):
        raise UserError(f"{place}: must be a JSON object with named fields, got {_shown(fields)}")
    return Row(place, index, fields)


def _shown(value: Any) -> str:
    """Returns a value shortened for a message, with its type."""
    return f"{reprlib.repr(value)} ({type(value).__name__})"
