"""Reads MovieLens-1M: the stars a user gives a movie, from the user's earlier ratings (Harper and Konstan 2015).

1,000,209 ratings of 1 to 5 whole stars by 6,040 users, https://grouplens.org/datasets/movielens/1m/. The task is the
RAFT paper's (Lukasik et al.), after Luo et al. 2024 (arXiv:2401.13870), who give a model the user's ratings as titles
with stars, then the candidate's title.

About the splits: the paper has 797,758 / 10,145 / 10,145 rows and does not say how they are made. They are not those
of Luo et al., who hold out each user's last two ratings (6,040 each). Others report 797,758 for the first 80 % of each
user's ratings (and 99,692 / 102,759 for the next and the last 10 %); the origin of 10,145 is unknown.

Our choice: with a user's n ratings ordered by time, train takes the first ⌊0.8n⌋, validation is drawn from those up to
⌊0.9n⌋ and test from the rest: 10,145 each. A row's history is the 10 ratings before it, from any split; a user's first
rating stays in train with an empty history. Ratings within one second keep the file's order. The order of rows was
drawn once, so that the first few are of many users; no seed changes it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from reft_math.data.rows import Prompt, Split, check_unpacked
from reft_math.errors import UserError

NAME = "movielens"
URL = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
HELD_OUT = 10_145  # rows of validation, and of test
HISTORY = 10
_WHOLE = re.compile(r"[0-9]{1,18}")
STARS = ("1", "2", "3", "4", "5")

PROMPTS: dict[Prompt, str] = {
    "ours": "How many stars, from 1 (worst) to 5 (best), will this viewer give the next movie? "
    "Answer with the number alone.\nRated before, the latest last:\n{history}\nNext movie: {title}",
    "paper": "Instruction: Predict the rating of a target movie based on the user's historical movie ratings. "
    "Rating History: {history} Candidate Item: {title}. Output:",
}
BETWEEN: dict[Prompt, str] = {"ours": "\n", "paper": ", "}  # separator of ratings in the history; the paper shows none


class Rating(NamedTuple):
    """A user's rating of a movie, and the line of the file it is on."""

    time: int
    movie: str
    stars: str
    line: int


def examples(split: Split, data_dir: str | None, prompt: Prompt = "ours") -> Iterator[tuple[str, str, float]]:
    """Yields each row's key (``"user-movie"``), text and target; texts are made on demand.

    Raises:
        UserError: If the files cannot be loaded, a line is malformed, or there are too few ratings for the split.
    """
    folder = _folder(data_dir)
    titles = _titles(folder / "movies.dat")
    users = _users(folder / "ratings.dat", titles)
    pool = [(user, place) for user, ratings in users.items() for place in _places(split, len(ratings))]
    size = len(pool) if split == "train" else HELD_OUT
    if len(pool) < size:
        raise UserError(
            f"{folder / 'ratings.dat'}: {split} is {size} of the ratings held out, but only {len(pool)} are: "
            "is the file MovieLens-1M's, all of it?"
        )
    for user, place in random.Random(f"{NAME}/{split}").sample(pool, size):
        rating = users[user][place]
        history = users[user][max(0, place - HISTORY) : place]
        yield f"{user}-{rating.movie}", _text(titles, history, rating, prompt), float(rating.stars)


def _places(split: Split, count: int) -> range:
    """Returns the indices, by time, of a user's ``count`` ratings that a split has or is drawn from."""
    starts = {"train": 0, "validation": 8 * count // 10, "test": 9 * count // 10}
    ends = {"train": starts["validation"], "validation": starts["test"], "test": count}
    return range(starts[split], ends[split])


def _text(titles: dict[str, str], history: Sequence[Rating], rating: Rating, prompt: Prompt) -> str:
    lines = [f"{titles[before.movie]}: {before.stars}" for before in history]
    history_text = BETWEEN[prompt].join(lines) or "(nothing yet)"
    return PROMPTS[prompt].format(history=history_text, title=titles[rating.movie])


def _folder(data_dir: str | None) -> Path:
    """Returns the files' folder: ``movielens``, ``movielens/ml-1m`` or, without a data folder, the download's."""
    folder = _downloaded() if data_dir is None else Path(data_dir) / NAME
    return folder / "ml-1m" if (folder / "ml-1m").is_dir() else folder


def _downloaded() -> Path:
    import datasets  # takes a second, which users of local files need not wait

    try:
        return Path(datasets.DownloadManager().download_and_extract(URL))
    except Exception as error:  # the client's failures share no class, and nothing else runs here
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"cannot download {URL}: {reason}; check the network, or unpack the archive in DIR/{NAME} and give "
            "--data-dir DIR"
        ) from error


def _titles(path: Path) -> dict[str, str]:
    titles: dict[str, str] = {}
    for line, (movie, title, _) in _records(path, "MovieID::Title::Genres"):
        if movie in titles:
            raise UserError(f"{path}, line {line}: every movie needs an id of its own, got {movie!r} again")
        if not title.strip():
            raise UserError(f"{path}, line {line}: movie {movie} must have a title")
        titles[movie] = title.strip()
    return titles


def _users(path: Path, titles: dict[str, str]) -> dict[str, list[Rating]]:
    """Returns each user's ratings by time, the users in the file's order."""
    users: dict[str, dict[str, Rating]] = {}
    for line, (user, movie, stars, time) in _records(path, "UserID::MovieID::Rating::Timestamp"):
        if not (_WHOLE.fullmatch(user) and _WHOLE.fullmatch(time)):
            raise UserError(f"{path}, line {line}: user and time must be whole numbers, got {user!r} and {time!r}")
        if movie not in titles:
            raise UserError(f"{path}, line {line}: movie {movie!r} is not in movies.dat")
        if stars not in STARS:
            raise UserError(f"{path}, line {line}: the rating must be 1, 2, 3, 4 or 5, got {stars!r}")
        ratings = users.setdefault(user, {})
        if movie in ratings:  # the later rating's history would hold its earlier stars
            raise UserError(
                f"{path}, line {line}: user {user} rates movie {movie} again, after line {ratings[movie].line}"
            )
        ratings[movie] = Rating(int(time), movie, stars, line)
    if not users:
        raise UserError(f"{path} must hold at least one rating, but has none")
    for user, ratings in users.items():
        if len(ratings) == 1:
            (only,) = ratings.values()
            raise UserError(f"{path}, line {only.line}: user {user} has no other rating, so nothing to predict it from")
    return {user: sorted(ratings.values(), key=lambda rating: rating.time) for user, ratings in users.items()}


def _records(path: Path, columns: str) -> Iterator[tuple[int, list[str]]]:
    """Yields each line's number and its cells; blank lines are skipped."""
    count = len(columns.split("::"))
    for number, line in enumerate(_decoded(path).split("\n"), start=1):
        cells = line.rstrip("\r").split("::")
        if len(cells) == count:
            yield number, cells
        elif line.strip():
            raise UserError(f"{path}, line {number}: must be {columns} in Latin-1, got {len(cells)} cells")


def _decoded(path: Path) -> str:
    """Returns the file's text: Latin-1, as published, or UTF-8 if a copy was saved so."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; it is one of the files in {URL}") from error
    check_unpacked(path, content)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")
