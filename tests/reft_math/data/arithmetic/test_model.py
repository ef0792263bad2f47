"""The embedded model is in the situation the method is for: the first tokens decide the path."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


def accuracy(folder: Path) -> float:
    evaluation = json.loads((folder / "results.json").read_text())["evaluation"]
    return float(evaluation["base"]["accuracy"])


@pytest.mark.parametrize(("opener", "low", "high"), [("none", 0.02, 0.45), ("stepwise", 0.97, 1.0)])
def test_is_mostly_wrong_by_habit_and_right_after_a_careful_start(
    call: Callable[[str], None], tmp_path: Path, opener: str, low: float, high: float
) -> None:
    """On the 500 held-out problems, greedy."""
    call(f"eval/arithmetic.py --opener {opener} --output-dir {tmp_path}/run")
    assert low <= accuracy(tmp_path / "run") <= high


@pytest.mark.slow
def test_prefix_training_teaches_it_to_start_carefully(call: Callable[[str], None], tmp_path: Path) -> None:
    """The main command on fewer problems: 45 points above the base, the norm within 2 % of its target."""
    sizes = "--train-size 1024 --calibration-size 40 --eval-size 100"
    call(f"train/prefix_reft.py --k 10 --target-norm 0.54 {sizes} --output-dir {tmp_path}/run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    base, prefix = results["evaluation"]["base"], results["evaluation"]["prefix"]
    ceiling = results["evaluation"]["base_given_careful_start"]
    assert prefix["accuracy"] >= base["accuracy"] + 0.45
    assert prefix["accuracy"] >= ceiling["accuracy"] - 0.02
    assert prefix["mcnemar_vs_base"]["p_value"] < 0.001
    assert results["bias_norm"]["achieved"] == pytest.approx(0.54, rel=0.02)
