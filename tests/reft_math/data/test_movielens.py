from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from reft_math.data import movielens
from reft_math.data.regression_rows import RegressionRow, load_regression
from reft_math.data.rows import Split
from reft_math.errors import UserError

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
MOVIES = "".join(f"{n}::Movie {n} (19{n:02})::Drama|Comedy\n" for n in range(1, 100))


def ratings_of(user: int, count: int) -> str:
    """Movie n gets 1 + n % 5 stars at time 1000 + n; the lines are in another order, as in the published file."""
    order = sorted(range(1, count + 1), key=lambda n: (n * 7) % 11)
    return "".join(f"{user}::{n}::{1 + n % 5}::{1000 + n}\n" for n in order)


def written(folder: Path, ratings: str | bytes, movies: str | bytes = MOVIES) -> str:
    for file, content in (("ratings.dat", ratings), ("movies.dat", movies)):
        path = folder / "movielens" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("latin-1") if isinstance(content, str) else content)
    return str(folder)


def message_of(data_dir: str | None, split: Split = "train") -> str:
    with pytest.raises(UserError) as caught:
        load_regression("movielens", split, data_dir)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def by_id(rows: list[RegressionRow]) -> dict[str, RegressionRow]:
    return {row.id: row for row in rows}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows of validation and two of test."""
    monkeypatch.setattr(movielens, "HELD_OUT", 2)


@pytest.mark.usefixtures("small")
def test_a_text_holds_the_ten_ratings_before_the_candidate_and_nothing_of_it_or_after(tmp_path: Path) -> None:
    rows = by_id(load_regression("movielens", "train", written(tmp_path, ratings_of(7, 20))))
    assert set(rows) == {f"movielens/train/7-{n}" for n in range(1, 17)}
    for n in range(1, 17):
        row = rows[f"movielens/train/7-{n}"]
        before = [f"Movie {m} (19{m:02}): {1 + m % 5}" for m in range(max(1, n - 10), n)] or ["(nothing yet)"]
        assert row.target == 1 + n % 5
        assert row.text.endswith(
            "Answer with the number alone.\nRated before, the latest last:\n"
            + "\n".join(before)
            + f"\nNext movie: Movie {n} (19{n:02})"
        )
    row = by_id(load_regression("movielens", "train", str(tmp_path), prompt="paper"))["movielens/train/7-3"]
    assert row.text == (
        "Instruction: Predict the rating of a target movie based on the user's historical movie ratings. "
        "Rating History: Movie 1 (1901): 2, Movie 2 (1902): 3 Candidate Item: Movie 3 (1903). Output:"
    )


@pytest.mark.usefixtures("small")
def test_the_splits_are_the_first_80_next_10_and_last_10_percent_of_each_user(tmp_path: Path) -> None:
    data_dir = written(tmp_path, ratings_of(1, 20) + ratings_of(2, 9) + ratings_of(3, 2))
    ids = {
        split: {row.id.rpartition("/")[2] for row in load_regression("movielens", split, data_dir)} for split in SPLITS
    }
    # Of 20: 16, 2 and 2. Of 9: 7, 1 and 1. Of 2: 1, 0 and 1.
    assert ids["train"] == {f"1-{n}" for n in range(1, 17)} | {f"2-{n}" for n in range(1, 8)} | {"3-1"}
    assert len(ids["validation"]) == 2
    assert ids["validation"] < {"1-17", "1-18", "2-8"}
    assert len(ids["test"]) == 2
    assert ids["test"] < {"1-19", "1-20", "2-9", "3-2"}


@pytest.mark.usefixtures("small")
def test_a_held_out_rating_has_the_held_out_ones_before_it_in_its_history(tmp_path: Path) -> None:
    rows = by_id(load_regression("movielens", "test", written(tmp_path, ratings_of(1, 20))))
    assert "\nMovie 19 (1919): 5\nNext movie: Movie 20 (1920)" in rows["movielens/test/1-20"].text


@pytest.mark.usefixtures("small")
def test_ratings_of_one_second_stay_in_the_files_order(tmp_path: Path) -> None:
    data_dir = written(tmp_path, "1::9::4::50\n1::3::2::50\n1::5::1::50\n1::8::3::49\n1::1::5::50\n")
    rows = load_regression("movielens", "train", data_dir)
    assert by_id(rows)["movielens/train/1-5"].text.endswith(
        "\nMovie 8 (1908): 3\nMovie 9 (1909): 4\nMovie 3 (1903): 2\nNext movie: Movie 5 (1905)"
    )


def test_rows_are_drawn_the_same_each_time_and_a_limit_gives_the_first_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 users with 300 ratings each: 30 of each user to draw 1,000 held-out rows from."""
    monkeypatch.setattr(movielens, "HELD_OUT", 1_000)
    movies = "".join(f"{n}::M{n}::Drama\n" for n in range(300))
    ratings = "".join(f"{user}::{n}::{1 + n % 5}::{n}\n" for user in range(100) for n in range(300))
    data_dir = written(tmp_path, ratings, movies)
    for split, size in zip(SPLITS, (24_000, 1_000, 1_000), strict=True):
        rows = load_regression("movielens", split, data_dir)
        assert len(by_id(rows)) == len(rows) == size
        assert load_regression("movielens", split, data_dir, seed=5) == rows
        assert load_regression("movielens", split, data_dir, limit=200) == rows[:200]
        users = {row.id.split("/")[2].split("-")[0] for row in rows[:200]}
        assert len(users) > 70  # 87 expected of 100, where the file starts with one


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("encoding", ["latin-1", "utf-8", "utf-8-sig"])
def test_titles_are_read_as_published_in_latin1_or_as_saved_in_utf8(tmp_path: Path, encoding: str) -> None:
    movies = "1::Misérables, Les (1995)::Drama\r\n2::Léon: \x85 (1994)::Crime\r\n"
    data_dir = written(tmp_path, "1::1::4::1\r\n1::2::5::2\r\n\r\n", movies.encode(encoding))
    (row,) = load_regression("movielens", "train", data_dir)
    assert row.text.endswith("Next movie: Misérables, Les (1995)")


@pytest.mark.usefixtures("small")
def test_the_archives_own_folder_is_found_too(tmp_path: Path) -> None:
    data_dir = written(tmp_path, ratings_of(1, 20))
    expected = load_regression("movielens", "test", data_dir)
    (tmp_path / "unpacked" / "movielens").mkdir(parents=True)
    (tmp_path / "movielens").rename(tmp_path / "unpacked" / "movielens" / "ml-1m")
    assert load_regression("movielens", "test", str(tmp_path / "unpacked")) == expected


@pytest.mark.usefixtures("small")
def test_without_a_folder_the_publisher_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the download, which leaves what the archive holds: a folder ml-1m."""
    data_dir = written(tmp_path, ratings_of(1, 20))
    expected = load_regression("movielens", "test", data_dir)
    (tmp_path / "movielens").rename(tmp_path / "ml-1m")
    asked = []

    def download_and_extract(_: datasets.DownloadManager, url: str) -> str:
        asked.append(url)
        return str(tmp_path)

    monkeypatch.setattr(datasets.DownloadManager, "download_and_extract", download_and_extract)
    assert load_regression("movielens", "test") == expected
    assert asked == ["https://files.grouplens.org/datasets/movielens/ml-1m.zip"]


def test_a_failed_download_is_one_line_that_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise ConnectionError("no route to host.\nRetried 3 times")

    monkeypatch.setattr(datasets.DownloadManager, "download_and_extract", fail)
    assert message_of(None) == (
        "cannot download https://files.grouplens.org/datasets/movielens/ml-1m.zip: no route to host; check the "
        "network, or unpack the archive in DIR/movielens and give --data-dir DIR"
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("1::2::0::7", "the rating must be 1, 2, 3, 4 or 5, got '0'"),
        ("1::2::6::7", "the rating must be 1, 2, 3, 4 or 5, got '6'"),
        ("1::2::3.5::7", "the rating must be 1, 2, 3, 4 or 5, got '3.5'"),
        ("1::2::5", "must be UserID::MovieID::Rating::Timestamp in Latin-1, got 3 cells"),
        ("1\t2\t5\t7", "must be UserID::MovieID::Rating::Timestamp in Latin-1, got 1 cells"),
        ("1::2::5::noon", "user and time must be whole numbers, got '1' and 'noon'"),
        ("::2::5::7", "user and time must be whole numbers, got '' and '7'"),
        ("1::100::5::7", "movie '100' is not in movies.dat"),
        ("1::1::5::9000", "user 1 rates movie 1 again, after line 1"),
        ("4::2::5::7", "user 4 has no other rating, so nothing to predict it from"),
    ],
)
def test_a_malformed_rating_is_named_with_file_and_line(tmp_path: Path, line: str, expected: str) -> None:
    data_dir = written(tmp_path, f"1::1::5::5\n1::3::5::6\n\n{line}\n")
    for split in SPLITS:
        assert message_of(data_dir, split) == f"{tmp_path}/movielens/ratings.dat, line 4: {expected}"


@pytest.mark.parametrize(
    ("movies", "expected"),
    [
        (b"1::A::Drama\n1::B::Drama\n", "movies.dat, line 2: every movie needs an id of its own, got '1' again"),
        (b"1:: ::Drama\n", "movies.dat, line 1: movie 1 must have a title"),
        (b"1::A\n", "movies.dat, line 1: must be MovieID::Title::Genres in Latin-1, got 2 cells"),
        ("1::A::Drama\n".encode("utf-16"), "movies.dat, line 1: must be MovieID::Title::Genres in Latin-1, got 1"),
    ],
)
def test_a_malformed_movie_is_named_with_file_and_line(tmp_path: Path, movies: bytes, expected: str) -> None:
    assert expected in message_of(written(tmp_path, ratings_of(1, 20), movies))


def test_missing_and_cut_files_are_named(tmp_path: Path) -> None:
    assert message_of(str(tmp_path)).startswith(f"cannot read {tmp_path}/movielens/movies.dat: No such file")
    assert "ratings.dat must hold at least one rating" in message_of(written(tmp_path, ""))
    data_dir = written(tmp_path, ratings_of(1, 20))
    assert "validation is 10145 of the ratings held out, but only 2 are" in message_of(data_dir, "validation")
