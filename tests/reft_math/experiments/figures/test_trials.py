"""The figures of sweeps and ablations show the rows of their tables."""

from __future__ import annotations

import pytest

from reft_math.experiments.figures.trials import ablation_figure, norm_sweep_figure
from reft_math.experiments.trials import cell_rows, norm_rows, share_rows, trial_rows
from tests.reft_math.experiments.test_trials import ablation, sweep

BASE = {"accuracy": 0.06}


def test_a_panel_a_decoder_and_one_for_the_shares() -> None:
    trials = sweep()
    norms, shares = norm_rows(trials), share_rows(trials, {"change": 3, "bias": 2})
    figure = norm_sweep_figure(trial_rows(trials), norms, shares, BASE)
    assert len(figure.axes) == 3
    for axes, decoder in zip(figure.axes, ("always_on", "gated"), strict=False):
        rows = [row for row in norms if row["decoder"] == decoder]
        assert axes.lines[0].get_xdata().tolist() == [row["achieved"] for row in rows]
        assert axes.lines[0].get_ydata().tolist() == [row["accuracy"] for row in rows]
        (star,) = (line for line in axes.lines if line.get_marker() == "*" and len(line.get_xdata()))
        assert star.get_ydata()[0] == next(row["accuracy"] for row in rows if row["chosen"])
        assert "n = 40 problems, 2 seeds" in axes.get_title()
    labels = [line.get_label() for line in figure.axes[2].lines]
    for name, label in (("change", "changes"), ("bias", "bias")):
        line = figure.axes[2].lines[labels.index(label)]
        assert line.get_ydata().tolist() == [row["share"] for row in shares if row["share_of"] == name]


def test_a_dot_a_combination() -> None:
    cells = cell_rows(ablation())
    axes = ablation_figure(cells, BASE).axes[0]
    dots = [container.lines[0].get_xdata()[0] for container in axes.containers]
    assert dots == pytest.approx([row["accuracy"] for row in reversed(cells)])
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[-1] == "truncation + norm control + gate"
    assert names[0] == "none of the three"
    assert "n = 40 problems, 2 seeds" in axes.get_xlabel()
