"""Settings of `train/raft.py`: what they resolve to, what they warn of, and what they refuse."""

from __future__ import annotations

import warnings
from decimal import Decimal
from typing import Any

import pytest

from reft_math.commands.options.regression import RegressionOptions
from reft_math.data.regression_rows import RegressionRow, RegressionSplits
from reft_math.errors import UserError
from reft_math.models import load_model, load_tokenizer
from reft_math.regression.build import make_regressor
from reft_math.regression.config import default_grid
from reft_math.regression.grid import parse_numbers
from reft_math.regression.job import check_reach, cut, regressor_config, resolve


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        ({}, 5e-3),
        ({"tune": "full"}, 1e-3),
        ({"model": "some/model", "tune": "lora"}, 2e-4),
        ({"model": "some/model", "tune": "full"}, 1e-5),
        ({"model": "some/model", "tune": "full", "learning_rate": 0.5}, 0.5),
    ],
)
def test_the_learning_rate_is_that_of_the_base_and_the_tuning(settings: dict[str, Any], rate: float) -> None:
    assert resolve(RegressionOptions(**settings)).learning_rate == rate


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        ({}, None),
        ({"loss": "head:mlp"}, 1e-3),
        ({"loss": "head:mean"}, 2e-2),
        ({"loss": "head:mean", "model": "some/model"}, 1e-3),
        ({"loss": "head:mlp", "head_learning_rate": 0.5}, 0.5),
    ],
)
def test_a_heads_learning_rate_is_its_own(settings: dict[str, Any], rate: float | None) -> None:
    assert resolve(RegressionOptions(**settings)).head_learning_rate == rate


@pytest.mark.parametrize(
    ("data", "loss", "numbers", "last"),
    [
        ("original1", "raft", 10, "9"),
        ("original1", "ce", 901, "9"),
        ("stsb", "head:raft-grid", 5, "5"),
        ("stsb", "ce", 51, "5"),
        ("movielens", "ce", 5, "5"),
        ("stsb", "log", 1, "1"),
    ],
)
def test_the_grid_suits_the_data_and_the_loss(data: str, loss: str, numbers: int, last: str) -> None:
    grid = resolve(RegressionOptions(data=data, loss=loss)).grid
    assert grid is not None
    found = parse_numbers(grid)
    assert (len(found), found[-1]) == (numbers, Decimal(last))


def test_scaled_targets_have_a_scaled_grid() -> None:
    """Over 0 to 9, predictions of targets in [0, 1] would be nine times too large at the start."""
    assert resolve(RegressionOptions(scale_targets=True)).grid == "0,1"
    with pytest.raises(UserError, match=r"pass --grid, such as 0:1:0\.01"):
        resolve(RegressionOptions(scale_targets=True, loss="ce"))
    assert resolve(RegressionOptions(scale_targets=True, loss="ce", grid="0:1:0.1")).grid == "0:1:0.1"


def test_a_head_without_a_grid_asks_for_none() -> None:
    options = resolve(RegressionOptions(data="mine.csv", loss="head:mean"))
    assert options.grid is None
    assert regressor_config(options).loss == "head:mean"
    with pytest.raises(UserError, match="--grid is for grids; --loss head:mean reads none"):
        RegressionOptions(loss="head:mean", grid="1:5:1")


def test_the_bounds_are_the_data_sets_and_only_where_targets_are_scaled() -> None:
    assert regressor_config(resolve(RegressionOptions())).bounds is None
    assert regressor_config(resolve(RegressionOptions(scale_targets=True))).bounds == (0, 9)
    assert regressor_config(resolve(RegressionOptions(data="amazon:music", loss="log"))).bounds == (1, 5)
    own = RegressionOptions(data="mine.csv", grid="0:1:0.5", scale_targets=True, bounds="-2,2.5")
    assert regressor_config(resolve(own)).bounds == (-2.0, 2.5)


def test_the_configuration_is_what_the_options_say() -> None:
    options = RegressionOptions(
        grid="1,2",
        grid_texts="low,high",
        added_tokens="first",
        tune="full",
        random_start=True,
        seed=7,
        bidirectional=True,
        normalised=True,
    )
    config = regressor_config(resolve(options))
    assert (config.texts, config.added_tokens, config.tune, config.random_seed) == (("low", "high"), "first", "full", 7)
    assert (config.bidirectional, config.normalised, config.base_model) == (True, True, "arithmetic")
    assert {"torch", "transformers"} <= config.versions.keys()
    assert regressor_config(resolve(RegressionOptions(seed=7))).random_seed is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": "mine.csv"}, "pass --grid for mine.csv, such as 1:9:1"),
        ({"data": "mine.csv", "loss": "log"}, "pass --bounds, such as --bounds 0,100"),
        ({"loss": "log", "grid": "0:9:1"}, "which stands for 1; got --grid 0:9:1: leave it out"),
        ({"bounds": "0,9"}, "--bounds 0,9 is for scaled targets; pass --scale-targets too"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(RegressionOptions(**settings))
    assert message in str(caught.value)


def test_the_data_of_ones_own_has_no_grid_of_its_own() -> None:
    assert (default_grid("stsb"), default_grid("stsb", is_fine=True)) == ("1:5:1", "0:5:0.1")
    with pytest.raises(UserError, match="pass --grid for own"):
        default_grid("own.jsonl")


def rows(*targets: float) -> list[RegressionRow]:
    return [RegressionRow(str(index), "", target) for index, target in enumerate(targets)]


def test_each_split_is_cut_to_its_own_size_and_only_train_by_the_seed() -> None:
    """A file ordered by genre is not one genre's, and fewer rows are part of more."""
    splits = RegressionSplits(rows(*range(900)), rows(*range(800)), rows(*range(700)))
    assert cut(splits, RegressionOptions(seed=3)) == splits
    sizes = {"train_size": 90, "validation_size": 80, "test_size": 70}
    first, second = (cut(splits, RegressionOptions(seed=seed, **sizes)) for seed in (0, 1))
    assert [len(first.train), len(first.validation), len(first.test)] == list(sizes.values())
    assert (first.validation, first.test) == (second.validation, second.test)
    assert 5 < len({row.id for row in first.train} & {row.id for row in second.train}) < 15
    for found in vars(first).values():
        targets = [row.target for row in found]
        assert targets == sorted(targets)
        assert 0.3 < sum(target < 400 for target in targets) / len(targets) < 0.7
    larger = cut(splits, RegressionOptions(train_size=300))
    assert {row.id for row in first.train} < {row.id for row in larger.train}


@pytest.mark.parametrize(
    ("settings", "reach"),
    [
        ({"grid": "1:5:1"}, (0, 5)),  # probabilities need not sum to 1 over the grid
        ({"grid": "1:5:1", "normalised": True}, (1, 5)),
        ({"grid": "0,1", "bounds": (2, 4)}, (2, 4)),
    ],
)
def test_targets_out_of_reach_are_warned_of(settings: dict[str, Any], reach: tuple[float, float]) -> None:
    config = regressor_config(resolve(RegressionOptions()))
    config = type(config)(**{**vars(config), "tune": "none", **settings})
    regressor = make_regressor(load_model("arithmetic"), load_tokenizer("arithmetic"), config)
    lower, upper = reach
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_reach(regressor, rows(lower, (lower + upper) / 2, upper))
    with pytest.warns(UserWarning, match=rf"2 of 4 training targets \(from {lower - 1} to {upper + 0.5}\) lie outside"):
        check_reach(regressor, rows(lower - 1, lower, upper, upper + 0.5))


def test_the_log_loss_is_refused_out_of_its_bounds() -> None:
    config = regressor_config(resolve(RegressionOptions(loss="log", bounds="2,4", scale_targets=True)))
    regressor = make_regressor(load_model("arithmetic"), load_tokenizer("arithmetic"), config)
    check_reach(regressor, rows(2, 3, 4))
    with pytest.raises(UserError, match=r"bounds 2 and 4; 2 of 4 training targets, from 1 to 4\.5, lie outside"):
        check_reach(regressor, rows(1, 2, 4, 4.5))


def test_a_head_reaches_everything(recwarn: pytest.WarningsRecorder) -> None:
    config = regressor_config(resolve(RegressionOptions(loss="head:logit")))
    regressor = make_regressor(load_model("arithmetic"), load_tokenizer("arithmetic"), config)
    check_reach(regressor, rows(-100, 100))
    assert not recwarn.list
