from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import datasets
import numpy as np
import pytest

from reft_math.data.registry import load_problems
from reft_math.data.regression_rows import NAMES, SCALES, RegressionRow, load_regression, load_splits
from reft_math.data.rows import Prompt, Split
from reft_math.errors import UserError
from reft_math.regression.grid import parse_numbers

PROMPTS: tuple[Prompt, ...] = get_args(Prompt)


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def message_of(name: str | Path, split: Split = "train", **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_regression(str(name), split, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- STS-B ----------------------------------------------------------------------------------------------------------


def test_a_pair_of_sentences_becomes_one_text_with_its_score(tmp_path: Path) -> None:
    written(tmp_path / "stsb" / "dev.csv", '"He said ""no"", twice.",A {cat}.,2.75\nA dog.,A dog.,5\n')
    first, second = load_regression("stsb", "validation", str(tmp_path))
    assert (first.id, first.target) == ("stsb/validation/0", 2.75)
    assert first.text.endswith('\nSentence 1: He said "no", twice.\nSentence 2: A {cat}.')
    assert (second.id, second.target) == ("stsb/validation/1", 5.0)
    assert load_regression("stsb", "validation", str(tmp_path), limit=1) == [first]


@pytest.mark.parametrize(("split", "rows"), [("train", 5749), ("validation", 1500), ("test", 1379)])
def test_every_row_of_the_real_files(shared_data: Path, split: Split, rows: int) -> None:
    loaded = load_regression("stsb", split, str(shared_data))
    assert len(loaded) == len({row.id for row in loaded}) == rows
    assert {min(row.target for row in loaded), max(row.target for row in loaded)} == {0.0, 5.0}


def test_the_papers_split_is_drawn_from_train_and_tests_on_the_authors_validation_rows(shared_data: Path) -> None:
    ours, paper = (load_splits(name, str(shared_data)) for name in ("stsb", "stsb:paper"))
    assert [len(paper.train), len(paper.validation), len(paper.test)] == [4887, 862, 1500]
    assert {row.id for row in ours.train} == {row.id for row in [*paper.train, *paper.validation]}
    assert paper.test == ours.validation
    places = {row.id: place for place, row in enumerate(ours.train)}  # captions come first, the news last
    assert np.mean([places[row.id] for row in paper.validation]) == pytest.approx(5749 / 2, rel=0.1)
    assert load_splits("stsb:paper", str(shared_data), seed=5) == paper


def test_the_papers_prompts_are_its_table_6(tmp_path: Path) -> None:
    written(tmp_path / "stsb" / "dev.csv", "A {dog} runs.,A cat sits.,2.75\n")
    for name, split in (("stsb", "validation"), ("stsb:paper", "test")):
        (row,) = load_regression(name, split, str(tmp_path), prompt="paper")  # type: ignore[arg-type]
        assert row.text == (
            "What is the sentence similarity between the following two sentences measured on a scale of 0 to 5: "
            "A {dog} runs., A cat sits.. The similarity measured on a scale of 0 to 5 with 0 being unrelated and 5 "
            "being related is equal to"
        )
    ours, paper = (load_regression("original1", "test", prompt=prompt, limit=1)[0] for prompt in PROMPTS)
    assert paper.text == (
        "The task is to provide your best estimate for 'output score' based on 'input score'. Please provide that and "
        f"only that, without any additional text. Input score: {x_of(ours)}. Output score:"
    )
    assert (paper.id, paper.target) == (ours.id, ours.target)
    own = written(tmp_path / "mine.csv", "text,target\na,1\n")
    assert "are prompts of one's own; got prompt paper: leave it out" in message_of(own, prompt="paper")


def test_the_hubs_single_precision_gives_the_rows_of_the_files(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the hub, with its fields, split names and precision, filled from the file by another reader."""

    def load_dataset(hub_id: str, config: str, *, split: str) -> datasets.Dataset:
        assert (hub_id, config) == ("PhilipMay/stsb_multi_mt", "en")
        file = datasets.Dataset.from_csv(
            str(shared_data / "stsb" / f"{split}.csv"),
            column_names=["sentence1", "sentence2", "similarity_score"],
            na_filter=False,
            cache_dir=str(tmp_path),
        )
        return file.cast_column("similarity_score", datasets.Value("float32"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for split in ("train", "validation"):  # the two with scores of more than 3 places
        assert load_regression("stsb", split) == load_regression("stsb", split, str(shared_data))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("A.,B.,1.0\nA.,B.\n", "dev.csv, line 2: must have 3 cells (sentence1, sentence2, similarity_score), got 2"),
        ("A.,B.,high\n", "dev.csv, line 1: field \"similarity_score\" must hold a number as its answer, got 'high'"),
        ("A.,B.,nan\n", "dev.csv, line 1: field \"similarity_score\" must hold a number as its answer, got 'nan'"),
        ("A.,B.,-1\n", 'dev.csv, line 1: field "similarity_score" must lie in [0, 5], got -1.0'),
        ("A.,B.,5.5\n", 'dev.csv, line 1: field "similarity_score" must lie in [0, 5], got 5.5'),
        ("A., ,1.0\n", 'dev.csv, line 1: field "sentence2" must not be empty'),
        ("", "dev.csv must hold at least one row, but has none"),
    ],
)
def test_a_malformed_pair_is_named_with_file_and_line(tmp_path: Path, content: str, expected: str) -> None:
    written(tmp_path / "stsb" / "dev.csv", content)
    assert expected in message_of("stsb", "validation", data_dir=str(tmp_path))


def test_a_folder_without_the_set_is_named(tmp_path: Path) -> None:
    assert message_of("stsb", data_dir=str(tmp_path)).startswith(f"cannot read {tmp_path}/stsb/train.csv: No such file")


# --- Original #1 ----------------------------------------------------------------------------------------------------


def x_of(row: RegressionRow) -> str:
    return row.text.rpartition("Input score: ")[2]


def test_targets_are_the_formula_of_the_x_in_the_text_scaled_to_0_to_9() -> None:
    every_x = np.arange(10_001) / 100
    every_y = every_x + 10 * np.sin(5 * np.pi * every_x / 100) + 10 * np.cos(6 * np.pi * every_x / 100)
    scaled = 9 * (every_y - every_y.min()) / (every_y.max() - every_y.min())
    for split in ("train", "validation", "test"):
        rows = load_regression("original1", split)
        expected = [scaled[round(100 * float(x_of(row)))] for row in rows]
        assert [row.target for row in rows] == pytest.approx(expected, abs=1e-9)
        assert all(0 <= row.target <= 9 for row in rows)
        assert all(len(x_of(row).partition(".")[2]) == 2 for row in rows)


def test_the_scale_is_met_exactly_at_both_ends() -> None:
    seen = {x_of(row): row.target for seed in range(4) for row in load_regression("original1", "train", seed=seed)}
    assert (seen["98.50"], max(seen.values())) == (9.0, 9.0)  # drawn from 40,000: neither x is held out
    assert (seen["0.00"], min(seen.values())) == (0.0, 0.0)


def test_no_x_of_one_split_is_in_another_and_none_is_tested_twice() -> None:
    validation = [x_of(row) for row in load_regression("original1", "validation")]
    test = [x_of(row) for row in load_regression("original1", "test")]
    assert len(set(validation)) == len(validation) == len(set(test)) == len(test) == 1000
    assert not set(validation) & set(test)
    for seed in (0, 1):
        train = {x_of(row) for row in load_regression("original1", "train", seed=seed)}
        assert not train & {*validation, *test}


def test_the_one_x_of_three_digits_is_left_to_train() -> None:
    for split in ("validation", "test"):
        assert "100.00" not in {x_of(row) for row in load_regression("original1", split)}


def test_x_is_uniform() -> None:
    for split in ("train", "validation", "test"):
        x = [float(x_of(row)) for row in load_regression("original1", split)]
        deciles = np.histogram(x, bins=10, range=(0, 100))[0]
        assert abs(deciles / len(x) - 0.1).max() < 0.035  # 3.7 standard deviations at 1,000 rows


def test_only_train_depends_on_the_seed() -> None:
    assert load_regression("original1", "train") == load_regression("original1", "train", seed=0)
    assert load_regression("original1", "train", seed=1) != load_regression("original1", "train")
    for split in ("validation", "test"):
        assert load_regression("original1", split, seed=1) == load_regression("original1", split)


def test_a_limit_gives_the_first_rows_of_the_same_set() -> None:
    rows = load_regression("original1", "train", seed=3)
    assert load_regression("original1", "train", seed=3, limit=20) == rows[:20]
    assert [len(rows), rows[19].id] == [10_000, "original1/train/3/19"]


def test_what_is_made_is_not_read_from_a_folder() -> None:
    assert '"original1" is made, not read' in message_of("original1", data_dir="somewhere")


# --- one's own file -------------------------------------------------------------------------------------------------


def test_a_csv_and_a_jsonl_file_of_ones_own_give_the_same_rows(tmp_path: Path) -> None:
    table = written(
        tmp_path / "mine.csv", '\ufefftext,target,year\r\n"One,\r\ntwo",-1.5,1999\r\n\r\nThree,1e2,2000\r\n'
    )
    lines = '{"text": "One,\\r\\ntwo", "target": -1.5}\n{"text": " Three", "target": 100}\n'
    expected = [RegressionRow("mine/train/0", "One,\r\ntwo", -1.5), RegressionRow("mine/train/1", "Three", 100.0)]
    assert load_regression(str(table), "train") == expected
    assert load_regression(str(written(tmp_path / "mine.jsonl", lines)), "train") == expected


def test_validation_is_the_sample_that_problems_have(tmp_path: Path) -> None:
    rows = [{"text": "?", "target": n, "question": "?", "solution": "!", "answer": n} for n in range(53)]
    path = str(written(tmp_path / "mine.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))
    for split in ("train", "validation"):
        for seed in (0, 1):
            found = [row.id for row in load_regression(path, split, seed=seed)]
            assert found == [problem.id for problem in load_problems(path, split, seed=seed)]
    assert len(load_regression(path, "validation")) == 10
    assert len(load_regression(path, "validation", limit=3)) == 3


def test_too_few_rows_for_a_validation_split_are_an_error(tmp_path: Path) -> None:
    path = written(tmp_path / "mine.csv", "text,target\n" + "a,1\n" * 4)
    assert "is a fifth of its rows: it needs at least 5, got 4" in message_of(path, "validation")
    assert len(load_regression(str(path), "train")) == 4


def test_rows_with_names_of_their_own_keep_them(tmp_path: Path) -> None:
    path = written(tmp_path / "mine.csv", "id,text,target\nfirst,a,1\nsecond,b,2\n")
    assert [row.id for row in load_regression(str(path), "train")] == ["mine/train/first", "mine/train/second"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "text,score\na,1\n", 'a.csv, line 2: field "target" is missing; the row has text, score'),
        ("a.csv", "text;target\na;1\n", 'a.csv, line 2: field "text" is missing; the row has text;target'),
        ("a.csv", "text,target,text\na,1,b\n", "a.csv: its first line must name each column once"),
        ("a.csv", "text,target\n", "a.csv must hold at least one row, but has none"),
        ("a.csv", 'text,target\n"a\nb",1\nc,inf\n', 'a.csv, line 4: field "target" must hold a number as its answer'),
        ("a.csv", "text,target\na,1\nb,one\n", 'a.csv, line 3: field "target" must hold a number as its answer'),
        ("a.csv", 'text,target\na,"3,5"\n', 'a.csv, line 2: field "target" must be a number without commas (1234.5)'),
        ("a.csv", "text,target\na,\n", 'a.csv, line 2: field "target" must not be empty'),
        ("a.csv", "text,target\na,b,1\n", "a.csv, line 2: must have 2 cells (text, target), got 3"),
        ("a.csv", 'text,target\na,1\n"b,2\nc,3\n', "a.csv, line 3: must be comma-separated text, got: unexpected end"),
        ("a.csv", b"text,target\na,1\n\xff,2\n", "a.csv, line 3: must be UTF-8 text, got byte 0xff"),
        ("a.csv", "id,text,target\nx,a,1\ny,b,2\nx,c,3\n", 'a.csv, line 4: every row needs an id of its own, got "x"'),
        ("a.jsonl", '{"text": "a"}\n', 'a.jsonl, line 1: field "target" is missing; the row has text'),
        ("a.jsonl", '{"text": 3, "target": 1}\n', 'a.jsonl, line 1: field "text" must be a string, got 3 (int)'),
        ("a.jsonl", '{"text": "a", "target": true}\n', 'line 1: field "target" must be a string or a number, got True'),
        ("a.jsonl", '{"text": "a", "target": [1]}\n', 'line 1: field "target" must be a string or a number, got [1]'),
        ("a.jsonl", '{"text": "a", "target": NaN}\n', 'line 1: field "target" must be a string or a number, got nan'),
        ("a.csv", b"\xef\xbb\xbftext,target\na,1\n\xfe,2\n", "a.csv, line 3: must be UTF-8 text, got byte 0xfe"),
        (
            "a.csv",
            "text,target\na,1\n" + "a" * 10**6 + ",2\n",
            "a.csv, line 3: must be comma-separated text, got: field la",
        ),
        (
            "a.jsonl",
            '{"text": "a", "target": 1}\n\n{"id": "0", "text": "b", "target": 2}\n',
            'a.jsonl, line 3: every row needs an id of its own, got "0", which is also that of',
        ),
    ],
)
def test_a_malformed_file_of_ones_own_is_named_with_the_line(
    tmp_path: Path, name: str, content: str | bytes, expected: str
) -> None:
    assert expected in message_of(written(tmp_path / name, content))


def test_the_row_that_has_an_id_already_is_named_too(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "id,text,target\nx,a,1\nx,b,2\n")
    assert message_of(path).endswith(f"which is also that of {path}, line 2")


# --- splits and scales -----------------------------------------------------------------------------------------------


def own_file(folder: Path, rows: int) -> str:
    lines = [json.dumps({"text": f"text {n}", "target": n}) + "\n" for n in range(rows)]
    return str(written(folder / "mine.jsonl", "".join(lines)))


def test_a_file_of_ones_own_is_cut_into_three_sets_that_share_no_row(tmp_path: Path) -> None:
    path = own_file(tmp_path, 60)
    splits = load_splits(path)
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [39, 9, 12]
    rows = [*splits.train, *splits.validation, *splits.test]
    assert sorted(row.target for row in rows) == list(range(60))
    assert all(row.id == f"mine/train/{row.target:g}" and row.text == f"text {row.target:g}" for row in rows)


def test_the_cut_is_the_same_every_time_and_tests_on_the_sample_that_is_named_validation(tmp_path: Path) -> None:
    """So that ``eval/regression.py`` without a seed scores no row that ``train/raft.py`` with any has trained on."""
    path = own_file(tmp_path, 60)
    splits = load_splits(path)
    assert load_splits(path, seed=7) == load_splits(path) == splits
    assert splits.test == load_regression(path, "validation")
    assert splits.validation != splits.test[: len(splits.validation)]


def test_a_large_file_holds_out_five_hundred_rows_twice(tmp_path: Path) -> None:
    splits = load_splits(own_file(tmp_path, 6000))
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [5000, 500, 500]


def test_a_known_set_keeps_its_own_splits() -> None:
    splits = load_splits("original1", seed=3)
    assert splits.train == load_regression("original1", "train", seed=3)
    assert splits.validation == load_regression("original1", "validation")
    assert splits.test == load_regression("original1", "test")


def test_the_real_files_keep_their_splits(shared_data: Path) -> None:
    splits = load_splits("stsb", str(shared_data))
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [5749, 1500, 1379]
    assert splits.validation == load_regression("stsb", "validation", str(shared_data))


@pytest.mark.parametrize("rows", [1, 4, 5, 11])
def test_a_file_too_small_for_three_sets_is_refused(tmp_path: Path, rows: int) -> None:
    with pytest.raises(UserError) as caught:
        load_splits(own_file(tmp_path, rows))
    assert "must have rows to train on, to choose by and to report on" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_set_has_a_scale_that_its_grids_keep_to() -> None:
    """The fine grid goes from bound to bound; the coarse one's numbers are single digits."""
    assert set(SCALES) == set(NAMES)
    for scale in SCALES.values():
        fine, coarse = parse_numbers(scale.fine_grid), parse_numbers(scale.grid)
        assert (min(fine), max(fine)) == scale.bounds
        assert all(scale.bounds[0] <= number <= scale.bounds[1] and number in range(10) for number in coarse)


def test_the_bounds_hold_every_target_of_original1_and_are_met() -> None:
    splits = load_splits("original1")
    targets = [row.target for row in [*splits.train, *splits.validation, *splits.test]]
    lower, upper = SCALES["original1"].bounds
    assert lower <= min(targets) < lower + 0.01
    assert upper - 0.01 < max(targets) <= upper


def test_the_bounds_are_the_least_and_greatest_target_of_the_real_files(shared_data: Path) -> None:
    splits = load_splits("stsb", str(shared_data))
    targets = [row.target for row in [*splits.train, *splits.validation, *splits.test]]
    assert (min(targets), max(targets)) == SCALES["stsb"].bounds


# --- names, splits, limits ------------------------------------------------------------------------------------------


def test_an_unknown_name_lists_the_known() -> None:
    known = "stsb, stsb:paper, original1, amazon:wireless, amazon:personal_care, amazon:music, movielens"
    for name in ("stsc", "amazon:books", "amazon"):
        assert f'unknown data set "{name}": expected one of {known}, or the path of a .csv' in message_of(name)


def test_a_split_that_a_set_lacks_is_an_error_before_anything_is_read() -> None:
    assert '"none.csv" has no test split, only train, validation' in message_of("none.csv", "test")
    assert '"stsb" has no dev split, only train, validation, test' in message_of("stsb", "dev")  # type: ignore[arg-type]


def test_a_limit_below_one_is_an_error() -> None:
    assert "limit must be at least 1, got 0" in message_of("original1", limit=0)


def test_the_sets_are_imported_without_torch_or_datasets() -> None:
    check = "import sys, reft_math.data.regression_rows; sys.exit(bool({'torch', 'datasets'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
