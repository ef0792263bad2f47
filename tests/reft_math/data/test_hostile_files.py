"""Every loader of data against every way for a file to be odd: read as if it were not, or refused in one line."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest

from reft_math.data import amazon
from reft_math.data.registry import load_problems
from reft_math.data.regression_rows import load_regression
from reft_math.errors import UserError
from reft_math.scoring.elsewhere import read_generations

Fields = dict[str, Any]

ROWS = 10
LONG = "x" * 10_000_000
HUGE = "9" * 5000
REVIEW = ("marketplace", "customer_id", amazon.ID, *amazon.TEXTS, "star_rating")


@dataclass(frozen=True)
class Loader:
    """What reads a file, and how a sound one looks.

    Attributes:
        file: Its path in the data folder.
        read: Takes that folder.
        row: The fields of a row by its number, in the file's order; ``text`` and ``number`` are two of them.
        mark: Between the cells of a line; None where a row is JSON.
        header: The line of names, if there is one.
    """

    file: str
    read: Callable[[Path], Any]
    row: Callable[[int], Fields]
    text: str
    number: str
    mark: str | None = None
    header: str | None = None

    @property
    def kind(self) -> str:
        return Path(self.file).suffix

    @property
    def first_line(self) -> int:
        """Of the rows; before it is the header, or a list's bracket."""
        return 2 if self.header or self.kind == ".json" else 1

    def content(self, rows: list[Fields]) -> bytes:
        lines = [json.dumps(row) if self.mark is None else self.mark.join(map(str, row.values())) for row in rows]
        if self.kind == ".json":
            return ("[\n" + ",\n".join(lines) + "\n]\n").encode()
        return "".join(line + "\n" for line in ([self.header] if self.header else []) + lines).encode()


def problems(name: str, split: Any, folder: Path) -> Any:
    return load_problems(name, split, data_dir=str(folder))


def own_problems(name: str, folder: Path) -> Any:
    return load_problems(str(folder / name), "train")


def regression(name: str, split: Any, folder: Path) -> Any:
    return load_regression(name, split, str(folder))


def own_regression(name: str, folder: Path) -> Any:
    return load_regression(str(folder / name), "train")


def reviews(folder: Path) -> Any:
    return [row for split in amazon.SIZES for row in load_regression("amazon:music", split, str(folder))]


LOADERS = {
    "gsm8k": Loader(
        "gsm8k/test.jsonl",
        partial(problems, "gsm8k", "test"),
        lambda n: {"question": f"q {n}", "answer": f"#### {n}"},
        *("question", "answer"),
    ),
    "math500": Loader(
        "math500/test.jsonl",
        partial(problems, "math500", "test"),
        lambda n: {"problem": f"q {n}", "solution": "s", "answer": str(n), "subject": "Algebra", "level": 3},
        *("problem", "level"),
    ),
    "svamp": Loader(
        "svamp/test.jsonl",
        partial(problems, "svamp", "test"),
        lambda n: {"Body": f"b {n}.", "Question": "q?", "ID": f"chal-{n}", "Answer": str(n), "Type": "Sum"},
        *("Body", "Answer"),
    ),
    "mawps": Loader(
        "mawps/test.json",
        partial(problems, "mawps", "test"),
        lambda n: {"instruction": f"q {n}", "answer": str(n)},
        *("instruction", "answer"),
    ),
    "math10k": Loader(
        "math10k/train.json",
        partial(problems, "math10k", "train"),
        lambda n: {"instruction": f"q {n}", "input": "", "output": "s", "answer": n},
        *("instruction", "answer"),
    ),
    "own list": Loader(
        "own.json",
        partial(own_problems, "own.json"),
        lambda n: {"question": f"q {n}", "solution": "s", "answer": n},
        *("question", "answer"),
    ),
    "own lines": Loader(
        "own.jsonl",
        partial(own_problems, "own.jsonl"),
        lambda n: {"question": f"q {n}", "solution": "s", "answer": n},
        *("question", "answer"),
    ),
    "completions": Loader(
        "made.jsonl",
        lambda folder: read_generations(folder / "made.jsonl"),
        lambda n: {"question": f"q {n}", "gold": n, "completion": f"#### {n}"},
        *("question", "gold"),
    ),
    "regression lines": Loader(
        "rows.jsonl",
        partial(own_regression, "rows.jsonl"),
        lambda n: {"text": f"t {n}", "target": n / 2, "id": str(n)},
        *("text", "target"),
    ),
    "regression table": Loader(
        "rows.csv",
        partial(own_regression, "rows.csv"),
        lambda n: {"id": str(n), "text": f"t {n}", "target": n / 2},
        *("text", "target", ",", "id,text,target"),
    ),
    "stsb": Loader(
        "stsb/dev.csv",
        partial(regression, "stsb", "validation"),
        lambda n: {"first": f"a {n}", "second": f"b {n}", "score": n / 10},
        *("first", "score", ","),
    ),
    "amazon": Loader(
        f"amazon/{amazon.FILES['amazon:music']}",
        reviews,
        lambda n: {**dict.fromkeys(REVIEW, f"t {n}"), "star_rating": 1 + n % 5},
        *("review_body", "star_rating", "\t", "\t".join(REVIEW)),
    ),
    "movies": Loader(
        "movielens/movies.dat",
        partial(regression, "movielens", "train"),
        lambda n: {"movie": n, "title": f"m {n}", "genres": "Drama"},
        *("title", "movie", "::"),
    ),
    "ratings": Loader(
        "movielens/ratings.dat",
        partial(regression, "movielens", "train"),
        lambda n: {"user": 1, "movie": n, "stars": 1 + n % 5, "time": 1000 + n},
        *("movie", "time", "::"),
    ),
}


def changed(loader: Loader, field: str, value: object) -> bytes:
    """The third row with another value in one field."""
    rows = [loader.row(n) for n in range(ROWS)]
    rows[2][field] = value
    return loader.content(rows)


def begun(loader: Loader, content: bytes) -> bytes:
    """The third row's text with these bytes before it."""
    return changed(loader, loader.text, f"@@{loader.row(2)[loader.text]}").replace(b"@@", content)


def numbered(loader: Loader, content: bytes) -> bytes:
    """The third row with these bytes for its number."""
    is_quoted = loader.mark is None and isinstance(loader.row(2)[loader.number], str)
    return changed(loader, loader.number, "@@").replace(b"@@" if is_quoted or loader.mark else b'"@@"', content)


def sound(loader: Loader) -> bytes:
    return loader.content([loader.row(n) for n in range(ROWS)])


def without(loader: Loader, field: str) -> bytes:
    rows = [loader.row(n) for n in range(ROWS)]
    del rows[2][field]
    return loader.content(rows)


def repeated(loader: Loader) -> bytes:
    return loader.content([loader.row(n) for n in (*range(ROWS), 2)])


def spaced(loader: Loader) -> bytes:
    """Blank lines before the last and at the end."""
    *lines, last = sound(loader).splitlines(keepends=True)
    return b"".join([*lines, b"\n  \n" if loader.kind != ".csv" else b"\n\n", last, b"\n\n"])


CONTENTS: dict[str, Callable[[Loader], bytes]] = {
    "another type": lambda loader: changed(loader, loader.number, [1]),
    "a field missing": lambda loader: without(loader, loader.text),
    "a row twice": repeated,
    "a line of 10 MB": lambda loader: begun(loader, LONG.encode()),
    "no UTF-8": lambda loader: begun(loader, b"a\xff"),
    "NUL": lambda loader: begun(loader, b"a\0"),
    "a byte order mark": lambda loader: b"\xef\xbb\xbf" + sound(loader),
    "UTF-16": lambda loader: sound(loader).decode().encode("utf-16"),
    "CR LF": lambda loader: sound(loader).replace(b"\n", b"\r\n"),
    "CR": lambda loader: sound(loader).replace(b"\n", b"\r"),
    "packed": lambda loader: gzip.compress(sound(loader), mtime=0),
    "empty": lambda loader: b"",
    "one row": lambda loader: loader.content([loader.row(0)]),
    "blank lines": spaced,
    "more after the end": lambda loader: sound(loader) + b"}{\n",
    "a huge number": lambda loader: numbered(loader, HUGE.encode()),
}

# What is said, by the loader's name or its file's ending; "" for all others. None where the file is read. {line} is the
# third row's, {last} the one after the last.
ROW = r"(line {line}|row 2): "
TOO_SHORT, NO_ROWS = r" line 1: user 1 has no other rating", "must hold at least one "
SAID: dict[str, dict[str, str | None]] = {
    "another type": {"": ROW + "field .* must|" + ROW, "movies": r"ratings.dat, line 3: movie '2' is not in movies"},
    "a field missing": {"": ROW},
    "a row twice": {
        **{"": None, "amazon": None, "svamp": "line {last}: every row needs an id"},
        **{
            "regression lines": "line {last}: every row needs an id",
            "regression table": "line {last}: every row needs",
        },
        **{"movies": "line {last}: every movie needs an id", "ratings": "line {last}: user 1 rates movie 2 again"},
    },
    "a line of 10 MB": {"": None, ".csv": "line {line}: .* larger than field limit", "ratings": "line {line}: movie"},
    "no UTF-8": {"": "line {line}: must be UTF-8 text, got byte 0xff", "movies": None, "ratings": "line {line}: movie"},
    "NUL": {"": None, ".jsonl": "line {line}: must be JSON", ".json": "line {line}: must be JSON", "ratings": "{line}"},
    "a byte order mark": {"": None},
    "UTF-16": {"": "line 1: must be UTF-8 text, got byte 0xff", ".tsv": "line 1: must name", ".dat": "line 1: "},
    "CR LF": {"": None},
    "CR": {
        "": None,
        ".jsonl": "line 1: must be JSON",
        ".tsv": "line 1: must name",
        ".dat": "line 1: must be .*Latin-1",
    },
    "packed": {"": r"is packed by gzip; unpack it first \(gunzip\)"},
    "empty": {"": NO_ROWS, ".tsv": "line 1: must name", "movies": "ratings.dat, line 1: movie '0' is not in movies"},
    "one row": {"": None, ".tsv": "at least 10", "movies": "movie '1' is not in movies", "ratings": TOO_SHORT},
    "blank lines": {"": None},
    "more after the end": {"": "line {last}: "},
    "a huge number": {"": ROW, ".json": "plain JSON, got: Exceeds|row 2: ", "movies": "movie '2' is not in movies"},
}


def said(damage: str, name: str) -> str | None:
    loader, answers = LOADERS[name], SAID[damage]
    answer = answers.get(name, answers.get(loader.kind, answers[""]))
    last = loader.first_line + ROWS + (loader.kind == ".json")
    return None if answer is None else answer.replace("{line}", str(loader.first_line + 2)).replace("{last}", str(last))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amazon, "SIZES", {"test": 2, "validation": 2, "train": 6})


@pytest.fixture
def folder(tmp_path: Path, name: str) -> Path:
    """Of sound files: the loader's own, and MovieLens's other."""
    for loader in (LOADERS[name], *(LOADERS[other] for other in ("movies", "ratings"))):
        path = tmp_path / loader.file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(sound(loader))
    return tmp_path


def plain(rows: Any) -> str:
    """Rows as text, but for their line numbers and what `begun` put in."""
    text = repr(rows).replace(LONG, "").replace(r"a\x00", "").replace("aÿ", "")
    return re.sub(r"line \d+", "line", text)


def refusal(loader: Loader, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        loader.read(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    assert len(message) <= 2000
    return message


@pytest.mark.parametrize("damage", CONTENTS)
@pytest.mark.parametrize("name", LOADERS)
def test_an_odd_file_is_read_as_if_it_were_not_or_refused_with_its_place(folder: Path, name: str, damage: str) -> None:
    loader, expected = LOADERS[name], said(damage, name)
    usual = loader.read(folder)
    (folder / loader.file).write_bytes(CONTENTS[damage](loader))
    if expected is not None:
        assert re.search(expected, refusal(loader, folder))
    elif damage == "one row":
        assert len(loader.read(folder)) == 1
    elif damage == "a row twice":  # rows that have no names are told apart by their place
        assert len(loader.read(folder)) - len(usual) == (0 if name == "amazon" else 1)
    else:
        assert plain(loader.read(folder)) == plain(usual)


def as_folder(path: Path) -> None:
    path.mkdir()


def as_dangling_link(path: Path) -> None:
    path.symlink_to(path.parent / "gone")


def as_packed_file_beside(path: Path) -> None:
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(b"{}", mtime=0))


PLACES = {
    "a folder": (as_folder, "Is a directory"),
    "a link to nothing": (as_dangling_link, "No such file|neither it nor"),
    "a .gz": (as_packed_file_beside, "No such file"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", LOADERS)
def test_what_stands_in_a_files_place_is_refused(folder: Path, name: str, place: str) -> None:
    loader, (make, expected) = LOADERS[name], PLACES[place]
    (folder / loader.file).unlink()
    make(folder / loader.file)
    if (name, place) == ("amazon", "a .gz"):  # it is published so
        expected = "line 1: must name the columns"
    assert re.search(f"{folder / loader.file}.*({expected})", refusal(loader, folder))


@pytest.mark.parametrize("name", LOADERS)
def test_a_file_that_may_not_be_read_is_refused(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object, **__: object) -> NoReturn:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)  # the tests' own user may be one who may read everything
    assert "Permission denied" in refusal(LOADERS[name], folder)
