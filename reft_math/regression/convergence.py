"""Draws figures of regression runs: convergence, and the effect of the number of training rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from reft_math.files.plots import OPEN_AXES, PALETTE
from reft_math.scoring.comparison import Run


def convergence_figure(runs: Sequence[Run]) -> Figure:
    """Draws validation RMSE against the optimiser step: a panel for each base and kind of tuning, a line for each loss.

    Args:
        runs: Runs of `train/raft.py`.
    """
    panels: dict[str, list[Run]] = {}
    for run in runs:
        regressor = run.results["regressor"]
        base = "pre-trained" if regressor["random_seed"] is None else "random"
        panels.setdefault(f"{regressor['tune']}, from {base} weights", []).append(run)
    names = list(dict.fromkeys(run.results["regressor"]["loss"] for run in runs))
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns + 1.5, 3.2 * rows), layout="constrained")
    with mpl.rc_context(OPEN_AXES):
        all_axes = [figure.add_subplot(rows, columns, index + 1) for index in range(len(panels))]
    for axes, (title, members) in zip(all_axes, panels.items(), strict=True):
        losses = [run.results["regressor"]["loss"] for run in members]
        for run, loss in zip(members, losses, strict=True):
            training = run.results["training"]
            axes.plot(
                training["steps"],
                training["rmse"],
                color=PALETTE[names.index(loss) % len(PALETTE)],
                linestyle="-" if losses.index(loss) == members.index(run) else ":",
                linewidth=1.3,
                label=loss if losses.count(loss) == 1 else f"{loss}, {run.folder.name}",
            )
        for constant in sorted({run.results["rmse_of_training_mean"] for run in members}):
            axes.axhline(constant, color="0.4", linestyle="--", linewidth=1, label="training mean, test rows")
        axes.set(title=title, xlabel="optimiser step", ylabel="RMSE on validation rows", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
    lows, highs = zip(*(axes.get_ylim() for axes in all_axes), strict=True)
    for axes in all_axes:
        axes.set_ylim(min(lows), max(highs))
    handles = {
        label: handle for axes in all_axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False, fontsize=8)
    return figure


def training_rows_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws test RMSE, and the best step (figure 4 of the RAFT paper), against the number of training rows.

    Settings that differ only in that number share a line, at the chosen learning rates; bars are ± sd over seeds.

    Args:
        rows: From `reft_math.regression.comparison.over_seeds`, with numbers of training rows.
    """
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted((row for row in rows if row["chosen"] and row["rows"]), key=lambda row: row["rows"]):
        curves.setdefault(row["curve"], []).append(row)
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    with mpl.rc_context(OPEN_AXES):
        left, right = figure.subplots(1, 2)
    for index, curve in enumerate(curves.values()):
        x = [row["rows"] for row in curve]
        label = f"{curve[0]['loss']}, {curve[0]['tuned']}, {curve[0]['base']}"
        style: dict[str, Any] = {
            "color": PALETTE[index % len(PALETTE)],
            "marker": "o",
            "markersize": 3,
            "linewidth": 1.3,
        }
        left.errorbar(x, [row["RMSE"] for row in curve], [row["sd"] or 0 for row in curve], label=label, **style)
        right.plot(x, [row["best step"] for row in curve], **style)
    for axes, name in ((left, "RMSE on test rows"), (right, "best step on validation rows")):
        axes.set(xlabel="training rows", ylabel=name, xscale="log")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure
