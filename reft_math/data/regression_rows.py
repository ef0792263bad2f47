"""Loads rows of text with a number to predict, by the name of their data set."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from reft_math.data import amazon, movielens, original1, stsb
from reft_math.data.rows import Prompt, Row, Split, bad_byte, check_unpacked, file_rows, hub_rows, unique_keys
from reft_math.errors import UserError

NAMES = (stsb.NAME, stsb.PAPER, original1.NAME, *amazon.FILES, movielens.NAME)
VALIDATION_SIZE = 500  # maximum number of rows, from the user's own file; at most a fifth of them


@dataclass(frozen=True)
class Scale:
    """The range of a set's targets, and grids for them.

    Attributes:
        bounds: The least and the greatest possible target.
        grid: A coarse grid: one digit per number.
        fine_grid: A grid about as fine as the targets, for cross-entropy, which cannot predict between two numbers.
    """

    bounds: tuple[float, float]
    grid: str
    fine_grid: str


_STARS = Scale((1, 5), "1:5:1", "1:5:1")
SCALES = {
    **dict.fromkeys((stsb.NAME, stsb.PAPER), Scale((0, 5), "1:5:1", "0:5:0.1")),
    original1.NAME: Scale((0, 9), "0:9:1", "0:9:0.01"),
    **dict.fromkeys((*amazon.FILES, movielens.NAME), _STARS),
}


@dataclass(frozen=True)
class RegressionRow:
    """One text with its number.

    Attributes:
        id: Stable name of the row within its data set and split, e.g. ``"stsb/test/17"``.
        text: Text of the prompt, without a prompt template's frame.
        target: ``y*``, finite, on the data set's own scale.
    """

    id: str
    text: str
    target: float


def load_regression(
    name: str,
    split: Split,
    data_dir: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    prompt: Prompt = "ours",
) -> list[RegressionRow]:
    """Returns the rows of a data set's split, in the source's order or the order of drawing (amazon, movielens).

    The user's own file has the columns (of a ``.csv`` file with a first line of names) or fields (of a ``.jsonl`` file)
    ``text`` and ``target``, and optionally ``id``. It has no test split: ``validation`` is a sample of it and ``train``
    is the rest, and both keep their ids in the file, e.g. ``"mine/train/17"``.

    Args:
        name: One of `NAMES`, or the path of a ``.csv`` or ``.jsonl`` file.
        split: Name of the split.
        data_dir: The folder that holds ``stsb/train.csv`` and so on; without it stsb comes from the Hugging Face hub
            and movielens from the publisher. Amazon's reviews are only read from it.
        limit: Number of rows, from the first.
        seed: Seed of original1's training rows and of the validation sample of the user's own file only.
        prompt: Wording of the texts; not for the user's own file.

    Raises:
        UserError: If the name is unknown, the set has no such split or prompt, the limit is invalid, the rows cannot be
            loaded or one is malformed.
    """
    if limit is not None and limit < 1:
        raise UserError(f"the limit must be at least 1, got {limit}; without one, all rows are taken")
    check_split(name, split)
    if name == original1.NAME:
        return _original1_rows(split, data_dir, seed, prompt)[:limit]
    if name == stsb.NAME:
        return _stsb_rows(split, data_dir, prompt)[:limit]
    if name == stsb.PAPER:
        return _stsb_paper_rows(split, data_dir, prompt)[:limit]
    if name in amazon.FILES:
        return _amazon_rows(name, split, data_dir, prompt)[:limit]
    if name == movielens.NAME:
        return _movielens_rows(split, data_dir, prompt, limit)
    if prompt != "ours":
        raise UserError(f'the texts of "{name}" are prompts of one\'s own; got prompt {prompt}: leave it out')
    rest, sample = _carve(_own_rows(Path(name)), seed)
    if split == "validation" and not sample:
        raise UserError(
            f'the validation split of "{name}" is a fifth of its rows: it needs at least 5, got {len(rest)}'
        )
    return (rest if split == "train" else sample)[:limit]


@dataclass(frozen=True)
class RegressionSplits:
    """Rows to train on, to choose a step by, and to report on."""

    train: list[RegressionRow]
    validation: list[RegressionRow]
    test: list[RegressionRow]


def load_splits(name: str, data_dir: str | None = None, seed: int = 0, prompt: Prompt = "ours") -> RegressionSplits:
    """Returns all rows of a data set, split for training.

    In the user's own file ``test`` is the validation sample of `load_regression`, and ``validation`` is a sample of the
    rest, so that no choice is made on reported rows.

    Args:
        name, data_dir, prompt: See `load_regression`.
        seed: Seed of original1's training rows only.

    Raises:
        UserError: As `load_regression`, or if the file is too small.
    """
    if name in NAMES:
        load = partial(load_regression, name, data_dir=data_dir, prompt=prompt)
        return RegressionSplits(load("train", seed=seed), load("validation"), load("test"))
    rest = load_regression(name, "train", data_dir, prompt=prompt)
    train, validation = _carve(rest, seed=1)
    if len(validation) < 2:  # then there are two test rows as well
        raise UserError(f'"{name}" must have rows to train on, to choose by and to report on: at least 12 in all')
    return RegressionSplits(train, validation, load_regression(name, "validation", data_dir))


def load_split(name: str, split: Split, data_dir: str | None = None, prompt: Prompt = "ours") -> list[RegressionRow]:
    """Returns one split of `load_splits`; of a known data set it reads only that split."""
    if name in NAMES:
        return load_regression(name, split, data_dir, prompt=prompt)
    rows: list[RegressionRow] = getattr(load_splits(name, data_dir, prompt=prompt), split)
    return rows


def drawn(rows: Sequence[RegressionRow], size: int | None, seed: int = 0) -> list[RegressionRow]:
    """Draws ``size`` rows by the seed, in their own order; a smaller draw is part of a larger one."""
    order = list(range(len(rows)))
    random.Random(f"rows/{seed}").shuffle(order)
    return [rows[index] for index in sorted(order[:size])]


def check_split(name: str, split: Split) -> None:
    """Raises `UserError` if there is no data set of that name, or it has no such split."""
    is_file = Path(name).suffix.lower() in (".csv", ".jsonl")
    if name not in NAMES and not is_file:
        raise UserError(
            f'unknown data set "{name}": expected one of {", ".join(NAMES)}, or the path of a .csv or .jsonl file'
        )
    available = ["train", "validation"] if is_file else ["train", "validation", "test"]
    if split not in available:
        raise UserError(f'"{name}" has no {split} split, only {", ".join(available)}: ask for one of them')


def _original1_rows(split: Split, data_dir: str | None, seed: int, prompt: Prompt) -> list[RegressionRow]:
    if data_dir is not None:
        raise UserError(f'"{original1.NAME}" is made, not read: leave the data folder {data_dir} out')
    key = f"{split}/{seed if split == 'train' else 0}"  # runs over several seeds are scored on the same rows
    examples = (original1.example(x, prompt) for x in original1.inputs(split, seed))
    return [
        RegressionRow(f"{original1.NAME}/{key}/{index}", text, target) for index, (text, target) in enumerate(examples)
    ]


def _stsb_rows(split: Split, data_dir: str | None, prompt: Prompt) -> list[RegressionRow]:
    if data_dir is None:
        rows = hub_rows(stsb.HUB, split)
    else:
        rows = _csv_rows(Path(data_dir) / stsb.NAME / stsb.FILES[split], stsb.COLUMNS)
    return [RegressionRow(f"{stsb.NAME}/{split}/{row.index}", *stsb.parse(row, prompt)) for row in rows]


def _stsb_paper_rows(split: Split, data_dir: str | None, prompt: Prompt) -> list[RegressionRow]:
    """Returns the paper's split; rows keep their ids in the authors' splits."""
    rows = _stsb_rows("validation" if split == "test" else "train", data_dir, prompt)
    if split == "test":
        return rows
    train = drawn(rows, stsb.PAPER_TRAIN)
    if split == "train":
        return train
    ids = {row.id for row in train}
    return [row for row in rows if row.id not in ids]


def _amazon_rows(name: str, split: Split, data_dir: str | None, prompt: Prompt) -> list[RegressionRow]:
    rows = amazon.rows(name, split, data_dir)
    return [RegressionRow(f"{name}/{split}/{row.text(amazon.ID)}", *amazon.parse(row, prompt)) for row in rows]


def _movielens_rows(split: Split, data_dir: str | None, prompt: Prompt, limit: int | None) -> list[RegressionRow]:
    # Train has 800,000 texts; do not make them all for a few rows.
    examples = islice(movielens.examples(split, data_dir, prompt), limit)
    return [RegressionRow(f"{movielens.NAME}/{split}/{key}", text, target) for key, text, target in examples]


def _own_rows(path: Path) -> list[RegressionRow]:
    rows = file_rows(path) if path.suffix.lower() == ".jsonl" else _csv_rows(path)
    keys = unique_keys(rows, lambda row: row.text("id") if "id" in row.fields else str(row.index))
    return [
        RegressionRow(f"{path.stem}/train/{key}", row.text("text"), _target(row))
        for row, key in zip(rows, keys, strict=True)
    ]


def _target(row: Row) -> float:
    """Returns the field ``target``. Unlike in answers of problems, commas are refused: one could be a decimal comma."""
    text = row.answer("target")
    if "," in text:
        raise row.error(f'field "target" must be a number without commas (1234.5), got {text!r}')
    return float(row.checked_number("target", text))


def _carve(rows: list[RegressionRow], seed: int) -> tuple[list[RegressionRow], list[RegressionRow]]:
    """Splits ``rows`` into the rest and a sample, with the indices that `load_problems` draws."""
    indices = set(random.Random(seed).sample(range(len(rows)), min(VALIDATION_SIZE, len(rows) // 5)))
    rest = [row for index, row in enumerate(rows) if index not in indices]
    return rest, [row for index, row in enumerate(rows) if index in indices]


def _csv_rows(path: Path, columns: Sequence[str] | None = None) -> list[Row]:
    """Reads a comma-separated file, its columns named here or by the first line; empty lines are skipped.

    Raises:
        UserError: If the file cannot be read, holds no rows, is not UTF-8 text, or a line has a cell too many or few.
    """
    records = _csv_records(path)
    if columns is None:
        _, cells = next(records, ("", []))
        columns = [cell.strip() for cell in cells]
        if len(set(columns)) < len(columns):
            raise UserError(f"{path}: its first line must name each column once, got {', '.join(columns)}")
    rows = []
    for index, (place, cells) in enumerate(records):
        if len(cells) != len(columns):
            raise UserError(f"{place}: must have {len(columns)} cells ({', '.join(columns)}), got {len(cells)}")
        rows.append(Row(place, index, dict(zip(columns, cells, strict=True))))
    if not rows:
        raise UserError(f"{path} must hold at least one row, but has none")
    return rows


def _csv_records(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields each record's place, by the line on which it starts, and its cells."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield f"{path}, line {line}", cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: must be comma-separated text, got: {error}") from error


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the data folder or the file's path") from error
    check_unpacked(path, content)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + error.object.count(b"\n", 0, error.start)
        raise UserError(f"{path}, line {line}: must be UTF-8 text, got byte {bad_byte(error)}") from error
