"""Tables of trials against what is counted by hand."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from reft_math.experiments.trials import (
    ALWAYS,
    FACTORS,
    GATED,
    Trial,
    cell_rows,
    chance_share,
    effect_rows,
    norm_rows,
    share_rows,
    trial_rows,
)
from reft_math.scoring.statistics import wilson_interval

PROBLEMS = [f"test/{index}" for index in range(40)]


def make_trial(about: dict[str, Any], validation: dict[str, int], rates: dict[str, float], **fields: Any) -> Trial:
    """Outcomes at the rates, drawn anew for each trial."""
    rng = np.random.default_rng(zlib.crc32(repr(about).encode()))
    correct = {name: {problem: bool(rng.random() < rate) for problem in PROBLEMS} for name, rate in rates.items()}
    test = {}
    for name, outcomes in correct.items():
        solved = sum(outcomes.values())
        test[name] = {
            "correct": solved,
            "total": len(PROBLEMS),
            "accuracy": solved / len(PROBLEMS),
            "interval_95": list(wilson_interval(solved, len(PROBLEMS))),
            "mcnemar_vs_base": {"p_value": 0.25},
        }
    defaults = {"achieved": 0.5, "gate": "kl:2", "shares": {"change": 0.1, "bias": 0.2}}
    chosen_by = {name: {"correct": count, "total": 16, "accuracy": count / 16} for name, count in validation.items()}
    return Trial(about=about, validation=chosen_by, test=test, correct=correct, **{**defaults, **fields})


def sweep() -> list[Trial]:
    trials = []
    for norm, seed in itertools.product((0.1, 0.4, 1.6), (0, 1)):
        about = {"curve": "free", "target_norm": norm, "seed": seed}
        # On validation problems 0.4 is best always on, and all are equally good under the gate.
        validation = {GATED: 12, ALWAYS: {0.1: 4, 0.4: 8 - 2 * seed, 1.6: 6}[norm]}
        rates = {GATED: 0.9, ALWAYS: {0.1: 0.1, 0.4: 0.3, 1.6: 0.9}[norm]}
        shares = {"change": 0.1 + seed / 10, "bias": 0.2}
        trials.append(make_trial(about, validation, rates, achieved=norm * (1 + seed / 100), shares=shares))
    return trials


def test_the_norm_is_chosen_on_validation_problems_and_the_smallest_of_equals() -> None:
    rows = {(row["decoder"], row["target_norm"]): row for row in norm_rows(sweep())}
    chosen = {decoder: row for (decoder, _), row in rows.items() if row["chosen"]}
    assert {decoder: row["target_norm"] for decoder, row in chosen.items()} == {GATED: 0.1, ALWAYS: 0.4}
    assert {decoder: (row["tied"], row["at_edge"]) for decoder, row in chosen.items()} == {
        GATED: (3, True),
        ALWAYS: (1, False),
    }
    assert sum(row["chosen"] for row in rows.values()) == 2
    most = max(row["accuracy"] for (decoder, _), row in rows.items() if decoder == ALWAYS)
    assert rows[ALWAYS, 0.4]["accuracy"] < most, "the test problems would have chosen another"


def test_norms_that_solve_as_many_over_all_seeds_are_equal_whatever_the_seeds() -> None:
    """Means of floating-point accuracies would differ in the last digit."""
    counts = {0.1: (195, 199, 200), 0.4: (198, 198, 198)}
    trials = [
        make_trial({"curve": "free", "target_norm": norm, "seed": seed}, {ALWAYS: count}, {ALWAYS: 0.5})
        for norm, of_seeds in counts.items()
        for seed, count in enumerate(of_seeds)
    ]
    assert [(row["chosen"], row["tied"]) for row in norm_rows(trials)] == [(True, 2), (False, None)]


def test_accuracy_is_the_mean_over_seeds_and_its_interval_that_of_resampled_seeds_and_problems() -> None:
    trials = [trial for trial in sweep() if trial.about["target_norm"] == 0.4]
    row = next(row for row in norm_rows(sweep()) if (row["decoder"], row["target_norm"]) == (ALWAYS, 0.4))
    outcomes = np.array([[trial.correct[ALWAYS][problem] for problem in PROBLEMS] for trial in trials], dtype=float)
    assert row["accuracy"] == pytest.approx(outcomes.mean())
    assert (row["seeds"], row["total"], row["over"]) == (2, 40, "seeds and problems")
    assert row["achieved"] == pytest.approx(0.4 * 1.005)
    assert row["validation"] == pytest.approx((8 + 6) / 32)
    rng = np.random.default_rng(1)
    drawn = [outcomes[np.ix_(rng.integers(2, size=2), rng.integers(40, size=40))].mean() for _ in range(20_000)]
    assert (row["low"], row["high"]) == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))), abs=0.02)


def test_of_one_seed_the_interval_is_wilsons_and_speaks_of_problems() -> None:
    trials = [trial for trial in sweep() if trial.about["seed"] == 0]
    for row in norm_rows(trials):
        assert row["over"] == "problems"
        assert (row["low"], row["high"]) == wilson_interval(round(row["accuracy"] * 40), 40)


def test_a_row_a_trial_and_decoder() -> None:
    trials = sweep()
    rows = trial_rows(trials)
    assert len(rows) == 12
    assert [row["gate"] for row in rows[:2]] == ["kl:2", "always"]
    for row, (trial, decoder) in zip(rows, itertools.product(trials, (GATED, ALWAYS)), strict=True):
        assert row["correct"] == sum(trial.correct[decoder].values())
        assert (row["low"], row["high"]) == wilson_interval(row["correct"], 40)
        assert (row["change_share"], row["p_vs_base"]) == (trial.shares["change"], 0.25)


def test_shares_are_means_and_ranges_over_seeds_beside_chance() -> None:
    rows = share_rows(sweep(), {"change": 3, "bias": 2})
    assert len(rows) == 6
    row = rows[0]
    assert (row["share_of"], row["target_norm"]) == ("change", 0.1)
    assert (row["least"], row["share"], row["most"]) == pytest.approx((0.1, 0.15, 0.2))
    assert {row["share_of"]: row["chance"] for row in rows} == pytest.approx({"change": 0.5, "bias": 2 / np.pi})


def test_chance_is_the_mean_cosine_of_random_vectors() -> None:
    vectors = np.random.default_rng(0).standard_normal((200_000, 20))
    cosines = np.abs(vectors[:, 0]) / np.linalg.norm(vectors, axis=1)
    assert chance_share(20) == pytest.approx(cosines.mean(), abs=1e-3)
    assert chance_share(10**6) == pytest.approx(np.sqrt(2 / np.pi / 10**6), rel=1e-3)


def ablation() -> list[Trial]:
    trials = []
    for cut, held, seed in itertools.product((True, False), (True, False), (0, 1)):
        about = {"truncation": cut, "norm_control": held, "seed": seed}
        rates = {GATED: 0.9 if cut else 0.5, ALWAYS: 0.2 + 0.1 * held}
        trials.append(make_trial(about, {}, rates, gate=f"kl:{1 + seed}"))
    return trials


def test_of_one_seed_only_the_gate_has_an_interval_and_none_has_where_nothing_changes() -> None:
    """What is trained might come out otherwise with another seed; 0 on all problems has none either."""
    trials = [trial for trial in ablation() if trial.about["seed"] == 0]
    for row in effect_rows(trials):
        assert (row["low"] is None) == (row["factor"] != "gate")
    same = [
        replace(trial, correct={GATED: trial.correct[ALWAYS], ALWAYS: trial.correct[ALWAYS]}) for trial in ablation()
    ]
    gate = [row for row in effect_rows(same) if row["factor"] == "gate"]
    assert [(row["effect"], row["low"], row["high"]) for row in gate] == [(0.0, None, None)] * 2


def test_every_combination_has_a_cell_and_every_factor_its_effect() -> None:
    """Against plain means over the outcomes of the cells with a factor and of those without."""
    trials = ablation()
    accuracy = {}
    for trial, decoder in itertools.product(trials, (GATED, ALWAYS)):
        levels = (trial.about["truncation"], trial.about["norm_control"], decoder == GATED)
        accuracy.setdefault(levels, []).append(np.mean(list(trial.correct[decoder].values())))
    cells = cell_rows(trials)
    assert len(cells) == len(accuracy) == 8
    for row in cells:
        levels = tuple(row[name] for name in FACTORS)
        assert row["accuracy"] == pytest.approx(np.mean(accuracy[levels]))
        assert row["gates"] == ("kl:1 kl:2" if row["gate"] else "always")
        assert row["low"] < row["accuracy"] < row["high"]
    effects = {(row["factor"], row["others"]): row for row in effect_rows(trials)}
    assert set(effects) == set(itertools.product(FACTORS, ("any", "on")))
    for index, factor in enumerate(FACTORS):
        with_it = np.mean([np.mean(values) for levels, values in accuracy.items() if levels[index]])
        without = np.mean([np.mean(values) for levels, values in accuracy.items() if not levels[index]])
        row = effects[factor, "any"]
        assert row["effect"] == pytest.approx(with_it - without)
        assert row["low"] < row["effect"] < row["high"]
        off = tuple(place != index for place in range(3))
        gain = np.mean(accuracy[True, True, True]) - np.mean(accuracy[off])
        assert effects[factor, "on"]["effect"] == pytest.approx(gain)
