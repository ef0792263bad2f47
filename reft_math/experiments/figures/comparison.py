"""Draws the accuracy of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from reft_math.files.plots import OPEN_AXES, PALETTE


def comparison_figure(rows: Sequence[Mapping[str, Any]], reference: str) -> Figure:
    """Draws a dot with its 95 % interval for each row of the table; a run's rows share their colour.

    Args:
        rows: From `reft_math.scoring.comparison.comparison_rows`.
        reference: ``run:decoder`` to draw as a dashed line.
    """
    names = [f"{row['run']}:{row['decoder']}" for row in rows]
    runs = list(dict.fromkeys(row["run"] for row in rows))
    figure = Figure(figsize=(8, 1.2 + 0.3 * len(rows)), layout="constrained")
    with mpl.rc_context(OPEN_AXES):
        axes = figure.subplots()
    for position, row in enumerate(rows):
        color = PALETTE[runs.index(row["run"]) % len(PALETTE)]
        axes.plot([row["low"], row["high"]], [position, position], color=color, linewidth=1.5)
        axes.plot(row["accuracy"], position, color=color, marker="o", markersize=5)
    axes.axvline(rows[names.index(reference)]["accuracy"], color="0.4", linestyle="--", linewidth=1, zorder=0)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)), yticklabels=names)
    axes.set_xlabel(f"accuracy on n = {rows[0]['total']} problems (95 % Wilson interval)", fontsize=9)
    axes.set_title(f"dashed: {reference}", loc="right", fontsize=8, color="0.4")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.tick_params(labelsize=8)
    return figure
