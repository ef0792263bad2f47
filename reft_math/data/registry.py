"""Loads data sets by name."""

from __future__ import annotations

import random
from pathlib import Path

from reft_math.data import gsm8k, math10k, math500, mawps, svamp
from reft_math.data.arithmetic.problems import arithmetic_problems
from reft_math.data.problem import Problem
from reft_math.data.rows import Split
from reft_math.errors import UserError

ARITHMETIC = "arithmetic"
ARITHMETIC_SIZES: dict[Split, int] = {"train": 2048, "validation": 200, "test": 500}
VALIDATION_SIZE = 500  # maximum number of rows, from a source's train split
SOURCES = {module.SOURCE.name: module.SOURCE for module in (gsm8k, math10k, math500, mawps, svamp)}


def dataset_names() -> list[str]:
    """Returns the names that `load_problems` knows; it also takes the path of a ``.json`` or ``.jsonl`` file."""
    return [ARITHMETIC, *SOURCES]


def evaluation_split(dataset: str) -> Split:
    """Returns the split to report results on: test, or validation if the set has no test split."""
    return "test" if "test" in _splits(dataset) else "validation"


def held_out_problems(dataset: str, data_dir: str | None = None) -> tuple[list[Problem], list[Problem]]:
    """Returns `problems_to_choose_by` and `problems_to_report_on`."""
    return problems_to_choose_by(dataset, data_dir), problems_to_report_on(dataset, data_dir)


def problems_to_choose_by(dataset: str, data_dir: str | None = None) -> list[Problem]:
    """Returns the validation split; its second half if there is no test split.

    The list is empty for a set without training rows.
    """
    splits = _splits(dataset)
    validation = load_problems(dataset, "validation", data_dir=data_dir) if "validation" in splits else []
    return validation if "test" in splits else validation[-(-len(validation) // 2) :]


def problems_to_report_on(dataset: str, data_dir: str | None = None) -> list[Problem]:
    """Returns the test split without reading others; the first half of the validation split if there is no test."""
    if "test" in _splits(dataset):
        return load_problems(dataset, "test", data_dir=data_dir)
    validation = load_problems(dataset, "validation", data_dir=data_dir)
    return validation[: -(-len(validation) // 2)]


def load_problems(
    dataset: str,
    split: Split,
    *,
    data_dir: str | None = None,
    seed: int = 0,
    validation_size: int = VALIDATION_SIZE,
    limit: int | None = None,
    noise: float = 0.5,
) -> list[Problem]:
    """Returns the problems of a data set's split, in the source's order.

    Only ``arithmetic`` comes with a validation split: in other sets ``validation`` is a sample of the source's train
    split and ``train`` the rest. Both keep the ids of their rows in the source, e.g. ``"gsm8k/train/17"``.

    Args:
        dataset: One of `dataset_names`, or the path of a ``.json`` or ``.jsonl`` file to train on.
        split: Name of the split.
        data_dir: The folder that holds ``gsm8k/train.jsonl`` and so on; None reads from the Hugging Face hub.
        seed: Seed of the validation sample, and of arithmetic's training problems.
        validation_size: Number of train rows for validation; at most a fifth of them.
        limit: Number of problems, from the first. For ``arithmetic``, which is endless, the size of the split.
        noise: Share of solutions with one wrong step; only for arithmetic's train split.

    Raises:
        UserError: If the name is unknown, the set has no such split, the rows cannot be loaded or one is malformed, or
            a number is out of its range.
    """
    _check_numbers(validation_size, limit, noise)
    _check_split(dataset, split)
    if dataset == ARITHMETIC and data_dir is not None:
        raise UserError(f'"{ARITHMETIC}" is made, not read: leave the data folder {data_dir} out')
    if dataset == ARITHMETIC:
        size = ARITHMETIC_SIZES[split] if limit is None else limit
        # Runs over several seeds are scored on the same problems.
        is_train = split == "train"
        return arithmetic_problems(split, size, seed if is_train else 0, noise=noise if is_train else 0.0)
    if split == "test":
        return _source_problems(dataset, "test", data_dir)[:limit]
    rest, sample = _carve(_source_problems(dataset, "train", data_dir), seed, validation_size)
    if split == "validation" and not sample:
        raise UserError(
            f'the validation split of "{dataset}" must hold at least one row, got none: '
            "it takes a fifth of the train rows, so at least 5 of them, and a validation size of at least 1"
        )
    return (rest if split == "train" else sample)[:limit]


def _check_numbers(validation_size: int, limit: int | None, noise: float) -> None:
    if validation_size < 0:
        raise UserError(f"the validation size must be 0 or more, got {validation_size}")
    if limit is not None and limit < 1:
        raise UserError(f"the limit must be at least 1, got {limit}; without one, all rows are taken")
    if not 0 <= noise <= 1:
        raise UserError(f"the noise is a share and must lie in [0, 1], got {noise}")


def _check_split(dataset: str, split: Split) -> None:
    available = _splits(dataset)
    if split not in available:
        raise UserError(
            f'"{dataset}" has no {split} split, only {", ".join(available)}: ask for that, or for another data set '
            "(arithmetic and gsm8k have train, validation and test)"
        )


def _splits(dataset: str) -> list[str]:
    if dataset == ARITHMETIC:
        return ["train", "validation", "test"]
    if _is_file(dataset):
        return ["train", "validation"]
    if dataset not in SOURCES:
        raise UserError(
            f'unknown data set "{dataset}": expected one of {", ".join(dataset_names())}, '
            "or the path of a .json or .jsonl file"
        )
    files = SOURCES[dataset].files
    return (["train", "validation"] if "train" in files else []) + (["test"] if "test" in files else [])


def _source_problems(dataset: str, split: Split, data_dir: str | None) -> list[Problem]:
    return math10k.own_problems(Path(dataset)) if _is_file(dataset) else SOURCES[dataset].problems(split, data_dir)


def _is_file(dataset: str) -> bool:
    return Path(dataset).suffix.lower() in (".json", ".jsonl")


def _carve(problems: list[Problem], seed: int, size: int) -> tuple[list[Problem], list[Problem]]:
    """Splits ``problems`` into the rest and a sample, both in their order."""
    indices = set(random.Random(seed).sample(range(len(problems)), min(size, len(problems) // 5)))
    rest = [problem for index, problem in enumerate(problems) if index not in indices]
    return rest, [problem for index, problem in enumerate(problems) if index in indices]
