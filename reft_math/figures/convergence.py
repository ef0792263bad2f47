"""How fast regression runs converge."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

from reft_math.comparison import Run
from reft_math.figures.norm_trace import PALETTE


def convergence_figure(runs: Sequence[Run]) -> Figure:
    """RMSE on validation rows against the optimiser step: a panel for each base and kind of tuning, a line a loss.

    Args:
        runs: Of `train/raft.py`.
    """
    panels: dict[str, list[Run]] = {}
    for run in runs:
        regressor = run.results["regressor"]
        base = "pre-trained" if regressor["random_seed"] is None else "random"
        panels.setdefault(f"{regressor['tune']}, from {base} weights", []).append(run)
    names = list(dict.fromkeys(run.results["regressor"]["loss"] for run in runs))
    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
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
            style = {"color": "0.4", "linestyle": "--", "linewidth": 1}
            axes.axhline(constant, label="training mean, test rows", **style)
        axes.set(title=title, xlabel="optimiser step", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
    all_axes[0].set_ylabel("RMSE on validation rows")
    handles = {
        label: handle for axes in all_axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False, fontsize=8)
    return figure
