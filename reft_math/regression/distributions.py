"""Draws the effect of training on the probabilities of a grid's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reft_math.files.plots import OPEN_AXES, PALETTE
from reft_math.regression.grid import number_texts, parse_numbers
from reft_math.scoring.comparison import Record, Run

Pair = tuple[Record, Record]  # records of one row, before and after training
EXAMPLES = (1 / 6, 1 / 2, 5 / 6)  # rows by their quantile in the order of the targets


def distributions_figure(changes: Sequence[tuple[Run, Sequence[Pair]]]) -> Figure:
    """Draws, in a row per run, the change of entropy over the grid, and the numbers' probabilities before and after.

    The first panel is a histogram over test rows, after minus before, as figure 6 of the RAFT paper; the others, if
    records hold probabilities, are their mean over rows and those of three rows, as its figure 7.

    Args:
        changes: Runs, each with its pairs from `reft_math.regression.comparison.changes`, none of which is empty.
    """
    panels = 2 + len(EXAMPLES)
    figure = Figure(figsize=(2.6 * panels, 2.4 * len(changes)), layout="constrained")
    with mpl.rc_context({**OPEN_AXES, "font.size": 8, "axes.titlesize": 9}):
        all_axes = figure.subplots(len(changes), panels, squeeze=False)
    for axes, (run, pairs) in zip(all_axes, changes, strict=True):
        _row(axes, run, pairs)
    return figure


def _row(axes: Sequence[Axes], run: Run, pairs: Sequence[Pair]) -> None:
    change = np.array([after["entropy"] - before["entropy"] for before, after in pairs])
    axes[0].hist(change, bins=30, color=PALETTE[0])
    axes[0].axvline(0, color="0.4", linestyle="--", linewidth=1)
    axes[0].set(title=f"{run.folder.name}: mean {change.mean():+.2f}", xlabel="change of entropy, nats", ylabel="rows")
    if any(record.get("probabilities") is None for pair in pairs for record in pair):
        for empty in axes[1:]:
            empty.set_axis_off()
        return
    texts = run.results["regressor"]["texts"] or number_texts(parse_numbers(run.results["regressor"]["grid"])).values()
    probabilities = np.array([[record["probabilities"] for record in pair] for pair in pairs])
    _bars(axes[1], list(texts), probabilities.mean(axis=0), f"mean of {len(pairs)} rows")
    axes[1].legend(frameon=False, fontsize=8)
    order = np.argsort([after["target"] for _, after in pairs], kind="stable")
    for panel, place in zip(axes[2:], EXAMPLES, strict=True):
        index = order[int(place * len(order))]
        _bars(panel, list(texts), probabilities[index], f"a row with target {pairs[index][1]['target']:g}")


def _bars(axes: Axes, texts: Sequence[str], probabilities: Any, title: str) -> None:
    """``probabilities``: ``(2, numbers)``, before and after."""
    places = np.arange(len(texts))
    for shift, name, row, colour in zip(
        (-0.2, 0.2), ("before", "after"), probabilities, ("0.6", PALETTE[1]), strict=True
    ):
        axes.bar(places + shift, row, width=0.4, color=colour, label=name)
    shown = places[:: -(-len(texts) // 10)]
    axes.set_xticks(shown, [texts[place] for place in shown])
    axes.set(title=title, xlabel="number", ylabel="probability")
