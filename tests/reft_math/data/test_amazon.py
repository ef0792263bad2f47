from __future__ import annotations

import csv
import gzip
import hashlib
import random
from pathlib import Path

import pytest

from reft_math.data import amazon
from reft_math.data.regression_rows import load_regression
from reft_math.data.rows import Split
from reft_math.errors import UserError

# As published: the first line of each category's file.
HEADER = (
    "marketplace\tcustomer_id\treview_id\tproduct_id\tproduct_parent\tproduct_title\tproduct_category\tstar_rating\t"
    "helpful_votes\ttotal_votes\tvine\tverified_purchase\treview_headline\treview_body\treview_date"
)
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
WIRELESS = "amazon_reviews_us_Wireless_v1_00.tsv"


def line(key: str, stars: object = 5, title: str = "A case", headline: str = "Good", body: str = "It fits.") -> str:
    return f"US\t1\t{key}\tB0\t2\t{title}\tWireless\t{stars}\t0\t0\tN\tY\t{headline}\t{body}\t2015-08-31"


def many(count: int) -> list[str]:
    return [line(f"R{n}", 1 + n % 5, body=f"Review {n}.") for n in range(count)]


def written(folder: Path, lines: list[str], file: str = WIRELESS, header: str = HEADER) -> str:
    path = folder / "amazon" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(f"{text}\n" for text in (header, *lines)).encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return str(folder)


def message_of(data_dir: str | None, split: Split = "test", name: str = "amazon:wireless") -> str:
    with pytest.raises(UserError) as caught:
        load_regression(name, split, data_dir)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits of 6 / 2 / 2 rows, so that a file of ten lines has them all."""
    monkeypatch.setattr(amazon, "SIZES", {"test": 2, "validation": 2, "train": 6})


@pytest.mark.usefixtures("small")
def test_a_review_becomes_one_text_with_its_stars(tmp_path: Path) -> None:
    """Against Python's csv reader without quotes; what looks like quoting, a format or markup is the customer's own."""
    odd = [
        line("RQ", 2, '5" case', '"Just" {ok}', 'It is 5" wide, "they said.<br />No\\" \x85 \u2028 no'),
        line("RB", 4, headline="", body=""),
    ]
    data_dir = written(tmp_path, [*odd, *many(8)])
    with (tmp_path / "amazon" / WIRELESS).open(encoding="utf-8", newline="\n") as file:
        expected = {row["review_id"]: row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}
    loaded = [row for split in SPLITS for row in load_regression("amazon:wireless", split, data_dir)]
    assert len(loaded) == len(expected) == 10
    for row in loaded:
        fields = expected[row.id.rpartition("/")[2]]
        assert row.target == int(fields["star_rating"])
        assert row.text.partition("Answer with the number alone.\n")[2] == (
            f"Category: Wireless\nProduct: {fields['product_title']}\nDate: 2015-08-31\n"
            f"Headline: {fields['review_headline']}\nReview: {fields['review_body']}"
        )
        assert "star_rating" not in row.text
    for row in load_regression("amazon:wireless", "train", data_dir, prompt="paper"):
        fields = expected[row.id.rpartition("/")[2]]
        assert row.text == (
            f"product_category: Wireless product_title: {fields['product_title']} review_date: 2015-08-31 "
            f"review_headline: {fields['review_headline']} review_body: {fields['review_body']} Question: In a star "
            "rating of 1, 2, 3, 4, 5, the higher the better, what would be the star rating of the above review? Please "
            "only give me the final rating and I do not need any explanations."
        )


def test_the_reviews_of_20_000_are_drawn_apart_and_the_same_each_time(tmp_path: Path) -> None:
    """The published sizes, from a plain file and from a packed one in another order of lines."""
    lines = many(20_000)
    plain = written(tmp_path / "plain", lines)
    random.Random(0).shuffle(lines)
    packed = written(tmp_path / "packed", lines, f"{WIRELESS}.gz")
    drawn = {split: load_regression("amazon:wireless", split, plain) for split in SPLITS}
    assert [len(drawn[split]) for split in SPLITS] == [10_000, 1_500, 1_500]
    assert len({row.id.rpartition("/")[2] for rows in drawn.values() for row in rows}) == 13_000
    for split in SPLITS:
        assert load_regression("amazon:wireless", split, packed, seed=3) == drawn[split]
    assert load_regression("amazon:wireless", "train", plain, limit=7) == drawn["train"][:7]
    for rows in drawn.values():  # 1 to 5 stars in equal parts, 3 on average; 4 standard errors of the smallest split
        assert abs(sum(row.target for row in rows) / len(rows) - 3) < 0.15


@pytest.mark.usefixtures("small")
def test_the_rows_are_those_of_the_lowest_hashes(tmp_path: Path) -> None:
    """Of 300 lines for 10 rows, so that what is kept in memory is cut many times; all 300 are sorted here."""
    data_dir = written(tmp_path, many(300))
    keys = sorted(
        (f"R{n}" for n in range(300)),
        key=lambda key: hashlib.blake2b(f"amazon:wireless/{key}".encode(), digest_size=16).hexdigest(),
    )
    expected = {"test": keys[:2], "validation": keys[2:4], "train": keys[4:10]}
    for split in SPLITS:
        found = [row.id for row in load_regression("amazon:wireless", split, data_dir)]
        assert found == [f"amazon:wireless/{split}/{key}" for key in expected[split]]


@pytest.mark.usefixtures("small")
def test_each_category_has_its_file_and_draws_of_its_own(tmp_path: Path) -> None:
    order = []
    for name, file in [
        ("amazon:wireless", WIRELESS),
        ("amazon:personal_care", "amazon_reviews_us_Personal_Care_Appliances_v1_00.tsv"),
        ("amazon:music", "amazon_reviews_us_Music_v1_00.tsv"),
    ]:
        data_dir = written(tmp_path, many(300), file)
        order.append([row.id.rpartition("/")[2] for row in load_regression(name, "train", data_dir)])
        assert f"DIR/amazon/{file}, or .tsv.gz" in message_of(None, name=name)
    assert order[0] != order[1] != order[2] != order[0]


@pytest.mark.usefixtures("small")
def test_a_review_that_comes_again_counts_once_as_it_came_first(tmp_path: Path) -> None:
    lines = many(10)
    again = [text.replace("Review", "Copy") for text in lines]
    once = load_regression("amazon:wireless", "train", written(tmp_path / "once", lines))
    assert load_regression("amazon:wireless", "train", written(tmp_path / "twice", [*lines, *again])) == once
    assert "at least 10 different reviews, got 9" in message_of(written(tmp_path / "few", [*lines[:9], *again[:9]]))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (line("RX", 0), "field \"star_rating\" must be 1, 2, 3, 4 or 5, got '0'"),
        (line("RX", 6), "field \"star_rating\" must be 1, 2, 3, 4 or 5, got '6'"),
        (line("RX", "4.5"), "field \"star_rating\" must be 1, 2, 3, 4 or 5, got '4.5'"),
        (line("RX", ""), 'field "star_rating" must not be empty'),
        (line(" "), 'field "review_id" must not be empty'),
        (line("RX", body="a\tb"), "must have 15 cells, got 16"),
        (line("RX").replace("\t2015-08-31", ""), "must have 15 cells, got 14"),
        ("RX,5,comma-separated", "must have cells with tabs between, got 1 cells"),
    ],
)
def test_a_malformed_row_is_named_with_file_and_line(tmp_path: Path, broken: str, expected: str) -> None:
    data_dir = written(tmp_path, [*many(4), "", broken, *many(9)[4:]])  # every review is drawn, into some split
    messages = []
    for split in SPLITS:
        try:
            load_regression("amazon:wireless", split, data_dir)
        except UserError as error:
            messages.append(str(error))
    assert set(messages) == {f"{tmp_path}/amazon/{WIRELESS}, line 7: {expected}"}


@pytest.mark.usefixtures("small")
def test_text_that_is_not_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    data_dir = written(tmp_path, many(10))
    path = tmp_path / "amazon" / WIRELESS
    path.write_bytes(path.read_bytes().replace(b"It", b"\xe9").replace(b"Review", b"\xe9"))
    assert "must be UTF-8 text, got byte 0xe9" in message_of(data_dir)


@pytest.mark.parametrize("content", [b"", b"text,target\na,1\n", b"\xff\xfe\x00r"])
def test_a_file_with_other_columns_is_refused_at_its_first_line(tmp_path: Path, content: bytes) -> None:
    data_dir = written(tmp_path, [])
    (tmp_path / "amazon" / WIRELESS).write_bytes(content)
    missing = "review_id, product_category, product_title, review_date, review_headline, review_body, star_rating"
    assert f"{WIRELESS}, line 1: must name the columns, with tabs between; missing: {missing}" in message_of(data_dir)


def test_a_missing_or_cut_file_is_named(tmp_path: Path) -> None:
    assert message_of(str(tmp_path)).startswith(
        f"cannot read {tmp_path}/amazon/{WIRELESS}: neither it nor {WIRELESS}.gz is there; Amazon has withdrawn it"
    )
    data_dir = written(tmp_path, many(2_000), f"{WIRELESS}.gz")
    path = tmp_path / "amazon" / f"{WIRELESS}.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-500])
    assert message_of(data_dir).startswith(f"cannot read {path}: Compressed file ended before")
    path.write_bytes(b"<html>no such key</html>")
    assert message_of(data_dir).startswith(f"cannot read {path}: Not a gzipped file")
    path.write_bytes(whole)
    assert "must hold at least 13000 different reviews, got 2000: is it all there?" in message_of(data_dir)
