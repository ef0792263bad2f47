from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from reft_math.data.registry import (
    dataset_names,
    held_out_problems,
    load_problems,
    problems_to_choose_by,
    problems_to_report_on,
)
from reft_math.data.regression_rows import load_split
from reft_math.data.rows import Split
from reft_math.errors import UserError

REAL_DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"


def gsm8k_row(number: int) -> dict[str, str]:
    return {
        "question": f"What is {number}+1?",
        "answer": f"It is <<{number}+1={number + 1}>>{number + 1}.\n#### {number + 1}",
    }


@pytest.fixture
def data_dir(tmp_path: Path) -> str:
    (tmp_path / "gsm8k").mkdir()
    for split, size in (("train", 50), ("test", 7)):
        lines = [json.dumps(gsm8k_row(number)) + "\n" for number in range(size)]
        (tmp_path / "gsm8k" / f"{split}.jsonl").write_text("".join(lines))
    return str(tmp_path)


def ids(dataset: str, split: Split, **options: Any) -> list[str]:
    return [problem.id for problem in load_problems(dataset, split, **options)]


def test_the_names() -> None:
    assert dataset_names() == ["arithmetic", "gsm8k", "math10k", "math500", "mawps", "svamp"]


def test_a_test_split_is_the_files_rows_in_order(data_dir: str) -> None:
    assert ids("gsm8k", "test", data_dir=data_dir) == [f"gsm8k/test/{index}" for index in range(7)]
    assert ids("gsm8k", "test", data_dir=data_dir, limit=2) == ["gsm8k/test/0", "gsm8k/test/1"]
    assert len(ids("gsm8k", "test", data_dir=data_dir, limit=100)) == 7


def test_validation_is_carved_out_of_train(data_dir: str) -> None:
    validation = ids("gsm8k", "validation", data_dir=data_dir, validation_size=8)
    train = ids("gsm8k", "train", data_dir=data_dir, validation_size=8)
    assert (len(validation), len(train)) == (8, 42)
    assert set(validation) | set(train) == {f"gsm8k/train/{index}" for index in range(50)}
    assert train[:5] == ids("gsm8k", "train", data_dir=data_dir, validation_size=8, limit=5)


def test_the_sample_is_a_function_of_the_seed(data_dir: str) -> None:
    def sample(seed: int) -> list[str]:
        return ids("gsm8k", "validation", data_dir=data_dir, validation_size=8, seed=seed)

    assert sample(0) == sample(0) != sample(1)


def test_validation_takes_at_most_a_fifth_of_train(data_dir: str) -> None:
    assert len(ids("gsm8k", "validation", data_dir=data_dir)) == 10
    assert len(ids("gsm8k", "train", data_dir=data_dir)) == 40


def test_a_validation_size_of_zero_leaves_all_of_train(data_dir: str) -> None:
    assert len(ids("gsm8k", "train", data_dir=data_dir, validation_size=0)) == 50
    with pytest.raises(UserError, match='validation split of "gsm8k" must hold at least one row'):
        load_problems("gsm8k", "validation", data_dir=data_dir, validation_size=0)


def test_a_malformed_row_is_named_with_file_line_and_field(data_dir: str) -> None:
    path = Path(data_dir) / "gsm8k" / "test.jsonl"
    path.write_text(json.dumps(gsm8k_row(1)) + "\n" + json.dumps({"question": "Why?", "answer": 12}) + "\n")
    with pytest.raises(UserError) as caught:
        load_problems("gsm8k", "test", data_dir=data_dir)
    assert str(caught.value) == f'{path}, line 2: field "answer" must be a string, got 12 (int)'


def test_arithmetic_has_three_splits_without_noise_outside_train() -> None:
    assert len(load_problems("arithmetic", "validation")) == 200
    test = load_problems("arithmetic", "test", limit=20, noise=1.0)
    train = load_problems("arithmetic", "train", limit=20, noise=1.0)
    assert [len(test), len(train)] == [20, 20]
    assert all(problem.solution.endswith(f"#### {problem.answer}") for problem in test)
    assert not any(problem.solution.endswith(f"#### {problem.answer}") for problem in train)
    assert test == load_problems("arithmetic", "test", limit=20, noise=0.0)
    assert train[:5] == load_problems("arithmetic", "train", limit=5, noise=1.0)


def test_an_own_file_has_train_and_validation(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([{"question": f"{n}?", "solution": f"{n}.", "answer": n} for n in range(10)]))
    train, validation = ids(str(path), "train"), ids(str(path), "validation")
    assert (len(train), len(validation)) == (8, 2)
    assert set(train) | set(validation) == {f"mine/train/{index}" for index in range(10)}
    with pytest.raises(UserError, match="has no test split, only train, validation"):
        load_problems(str(path), "test")


@pytest.mark.parametrize("dataset", ["math500", "svamp", "mawps"])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_set_with_only_a_test_split_says_so(dataset: str, split: Split) -> None:
    with pytest.raises(UserError, match=f'"{dataset}" has no {split} split, only test: '):
        load_problems(dataset, split)


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(UserError, match=r'unknown data set "gsm9k": expected one of arithmetic, gsm8k, .*svamp'):
        load_problems("gsm9k", "test")


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"validation_size": -1}, "validation size must be 0 or more, got -1"),
        ({"noise": 1.5}, r"must lie in \[0, 1\], got 1.5"),
    ],
)
def test_numbers_out_of_range_are_errors(option: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        load_problems("arithmetic", "test", **option)


def test_a_set_the_hub_does_not_have_asks_for_its_files() -> None:
    with pytest.raises(UserError, match=r'"mawps" is not loaded from .* --data-dir DIR \(DIR/mawps/test.json\)'):
        load_problems("mawps", "test")


def test_without_a_folder_the_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {
        ("openai/gsm8k", "main", "train"): [gsm8k_row(number) for number in range(10)],
        ("HuggingFaceH4/MATH-500", None, "test"): [
            {"problem": "?", "solution": "!", "answer": "1", "subject": "Algebra", "level": 1, "unique_id": "a"}
        ],
        ("ChilleD/SVAMP", None, "train+test"): [
            {"ID": "chal-7", "Body": "He has 2.", "Question": "How many?", "Answer": "2.0", "Type": "Addition"}
        ],
        ("lmms-lab/Math10K", None, "train"): [
            {"instruction": f"{n}?", "input": "", "output": f"{n}.", "answer": f"{n}.0"} for n in range(5)
        ],
    }

    def load_dataset(hub_id: str, config: str | None, *, split: str) -> datasets.Dataset:
        return datasets.Dataset.from_list(rows[hub_id, config, split])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(ids("gsm8k", "train")) == 8
    assert ids("math500", "test") == ["math500/test/0"]
    assert ids("svamp", "test") == ["svamp/test/chal-7"]
    assert len(ids("math10k", "train")) == 4


def test_the_registry_is_imported_without_torch_or_datasets() -> None:
    check = "import sys, reft_math.data.registry; sys.exit(bool({'torch', 'datasets'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"the data sets' files are not at {REAL_DATA}")
@pytest.mark.parametrize(
    ("dataset", "split", "rows"),
    [
        ("gsm8k", "train", 7473),
        ("gsm8k", "test", 1319),
        ("math500", "test", 500),
        ("svamp", "test", 1000),
        ("mawps", "test", 238),
    ],
)
def test_every_row_of_the_real_files(dataset: str, split: Split, rows: int) -> None:
    problems = load_problems(dataset, split, data_dir=str(REAL_DATA), validation_size=0)
    assert len(problems) == len({problem.id for problem in problems}) == rows
    assert all(problem.question and problem.answer for problem in problems)
    if dataset == "gsm8k":
        assert not any("<<" in problem.solution or ">>" in problem.solution for problem in problems)
        assert all(problem.solution.replace(",", "").endswith(f"\n#### {problem.answer}") for problem in problems)
    if dataset in ("gsm8k", "svamp", "mawps"):
        assert all(problem.answer == str(float(problem.answer)).removesuffix(".0") for problem in problems)


def test_what_is_chosen_by_is_not_what_is_reported_on(tmp_path: Path) -> None:
    """A file of one's own has no test split: its validation rows are halved."""
    lines = [json.dumps({"question": f"{n}+1?", "solution": f"#### {n + 1}", "answer": f"{n + 1}"}) for n in range(40)]
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(lines))
    choosing, reporting = held_out_problems(str(path))
    train = load_problems(str(path), "train")
    names = [{problem.id for problem in problems} for problems in (choosing, reporting, train)]
    assert [len(group) for group in names] == [4, 4, 32]
    assert len(set.union(*names)) == 40
    choosing, reporting = held_out_problems("arithmetic")
    assert (len(choosing), len(reporting)) == (200, 500)


def test_no_split_is_read_that_is_not_asked_for(tmp_path: Path) -> None:
    """A folder with one of the files is enough."""
    rows = "".join(json.dumps({"question": f"{n}+1?", "answer": f"#### {n + 1}"}) + "\n" for n in range(10))
    for split, ask, count in (("test", problems_to_report_on, 10), ("train", problems_to_choose_by, 2)):
        (tmp_path / split / "gsm8k").mkdir(parents=True)
        (tmp_path / split / "gsm8k" / f"{split}.jsonl").write_text(rows)
        assert len(ask("gsm8k", str(tmp_path / split))) == count
    (tmp_path / "stsb").mkdir()
    (tmp_path / "stsb" / "test.csv").write_text("One.,Two.,2.5\n")
    assert len(load_split("stsb", "test", str(tmp_path))) == 1
