"""Reads US Amazon reviews: a customer's review of a product, and the stars given with it.

The files are Amazon's, one a category, tab-separated and without quotes: Wireless has 9,002,021 reviews, Music
4,751,577 and Personal_Care_Appliances 85,981 (TensorFlow Datasets' catalog). The RAFT paper (Lukasik et al.) takes
10,000 / 1,500 / 1,500 reviews of "Wireless", "Personal care" and "Music" and does not say which. It cites Ni et al.
2019, but the fields of its prompt are those of these files. That "Personal care" is Personal_Care_Appliances (not
Health_Personal_Care), and "Music" is Music (not Digital_Music_Purchase), follows from the names alone.

Rows are drawn as follows: reviews are ordered by the 16-byte BLAKE2b hash of ``"amazon:wireless/" + review_id`` (in
UTF-8, the data set's name first). The first 1,500 are test, the next 1,500 validation, the next 10,000 train. So the
rows are the same for everyone, whatever the seed and the order of lines, no review is in two splits, and only the first
of lines with the same review_id counts. It takes one pass over the file, with at most 26,000 lines in memory.

Amazon has withdrawn the files, and `amazon_us_reviews` on the Hugging Face hub is defunct. Public projects name copies
(Kaggle's below, polinaeterna/amazon_us_reviews on the hub), but no documentation on the hub says that its rows and
configurations match these files, so the hub is not used.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from reft_math.data.rows import Prompt, Row, Split, check_unpacked
from reft_math.errors import UserError

FOLDER = "amazon"
FILES = {
    "amazon:wireless": "amazon_reviews_us_Wireless_v1_00.tsv",
    "amazon:personal_care": "amazon_reviews_us_Personal_Care_Appliances_v1_00.tsv",
    "amazon:music": "amazon_reviews_us_Music_v1_00.tsv",
}
KAGGLE = "cynthiarempel/amazon-us-customer-reviews-dataset"
SIZES: dict[Split, int] = {"test": 1_500, "validation": 1_500, "train": 10_000}  # in the order of drawing
ID = "review_id"
TEXTS = ("product_category", "product_title", "review_date", "review_headline", "review_body")
STARS = ("1", "2", "3", "4", "5")

PROMPTS: dict[Prompt, str] = {
    "ours": "How many stars, from 1 (worst) to 5 (best), did the writer of this review give? "
    "Answer with the number alone.\nCategory: {product_category}\nProduct: {product_title}\nDate: {review_date}\n"
    "Headline: {review_headline}\nReview: {review_body}",
    "paper": "product_category: {product_category} product_title: {product_title} review_date: {review_date} "
    "review_headline: {review_headline} review_body: {review_body} Question: In a star rating of 1, 2, 3, 4, 5, the "
    "higher the better, what would be the star rating of the above review? Please only give me the final rating and I "
    "do not need any explanations.",
}


def parse(row: Row, prompt: Prompt = "ours") -> tuple[str, float]:
    """Returns the text of a review and its stars; fields that the customer left blank are blank in the text.

    Raises:
        UserError: If the stars are not 1, 2, 3, 4 or 5.
    """
    stars = row.answer("star_rating")
    if stars not in STARS:
        raise row.error(f'field "star_rating" must be 1, 2, 3, 4 or 5, got {stars!r}')
    return PROMPTS[prompt].format(**{name: row.take(name, str).strip() for name in TEXTS}), float(stars)


def rows(name: str, split: Split, data_dir: str | None) -> list[Row]:
    """Returns the rows of a split in the order drawn, so that the first few are a sample too.

    Only drawn rows are checked: one broken line among millions is an error only if it is drawn.

    Raises:
        UserError: If the file cannot be read, has other columns or too few reviews, or a row is malformed.
    """
    path = _path(name, data_dir)
    lines = _lines(path)
    _, header = next(lines, (1, b""))
    check_unpacked(path, header)
    columns = header.decode("utf-8-sig", errors="replace").rstrip("\r\n").split("\t")
    missing = [column for column in (ID, *TEXTS, "star_rating") if column not in columns]
    if missing:
        raise UserError(f"{path}, line 1: must name the columns, with tabs between; missing: {', '.join(missing)}")
    drawn = _drawn(path, lines, columns.index(ID), f"{name}/".encode())
    order = list(SIZES)
    start = sum(SIZES[before] for before in order[: order.index(split)])
    return [
        _row(f"{path}, line {number}", index, line, columns)
        for index, (number, line) in enumerate(drawn[start : start + SIZES[split]])
    ]


def _path(name: str, data_dir: str | None) -> Path:
    file = FILES[name]
    source = f"Amazon has withdrawn it; Kaggle's {KAGGLE} is a copy"
    if data_dir is None:
        raise UserError(
            f'"{name}" is not downloaded: give its file with --data-dir DIR (DIR/{FOLDER}/{file}, or .tsv.gz); {source}'
        )
    paths = [Path(data_dir) / FOLDER / file, Path(data_dir) / FOLDER / f"{file}.gz"]
    for path in paths:
        if path.exists():
            return path
    raise UserError(f"cannot read {paths[0]}: neither it nor {paths[1].name} is there; {source}")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields the file's lines with their numbers, from 1, without loading the whole file."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from enumerate(file, start=1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path}: {reason}; was it downloaded to its end?") from error


def _drawn(path: Path, lines: Iterator[tuple[int, bytes]], column: int, prefix: bytes) -> list[tuple[int, bytes]]:
    """Returns the lines, with their numbers, of the reviews for all splits: those with the lowest hashes, in order."""
    size = sum(SIZES.values())
    kept: dict[bytes, tuple[int, bytes]] = {}
    bound = b"\xff" * 17  # above every hash
    for number, line in lines:
        cells = line.split(b"\t", column + 1)
        if len(cells) <= column:
            if line.strip():
                raise UserError(f"{path}, line {number}: must have cells with tabs between, got {len(cells)} cells")
            continue
        key = blake2b(prefix + cells[column].strip(), digest_size=16).digest()
        if key < bound:
            kept.setdefault(key, (number, line))
            if len(kept) == 2 * size:
                kept = {key: kept[key] for key in sorted(kept)[:size]}
                bound = max(kept)
    if len(kept) < size:
        raise UserError(f"{path} must hold at least {size} different reviews, got {len(kept)}: is it all there?")
    return [kept[key] for key in sorted(kept)[:size]]


def _row(place: str, index: int, line: bytes, columns: list[str]) -> Row:
    try:
        cells = line.decode("utf-8").rstrip("\r\n").split("\t")
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: must be UTF-8 text, got byte 0x{line[error.start]:02x}") from error
    if len(cells) != len(columns):
        raise UserError(f"{place}: must have {len(columns)} cells, got {len(cells)}")
    return Row(place, index, dict(zip(columns, cells, strict=True)))
