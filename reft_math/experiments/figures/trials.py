"""Draws accuracy and number-direction share against the bias norm, and accuracy of the eight combinations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, PercentFormatter

from reft_math.experiments.trials import FACTORS
from reft_math.files.plots import OPEN_AXES, PALETTE

TableRow = Mapping[str, Any]

_DECODERS = {"always_on": "always on", "gated": "under the gate"}
_SHARES = {"change": "changes", "bias": "bias"}
_LEGEND = {"fontsize": 8, "frameon": False}


def norm_sweep_figure(
    trials: Sequence[TableRow], norms: Sequence[TableRow], shares: Sequence[TableRow], base: TableRow
) -> Figure:
    """Draws a panel for each decoder, then one for the shares.

    Args:
        trials, norms, shares: The rows of ``trials.csv``, ``norms.csv`` and ``shares.csv``.
        base: The base's summary on the same problems.
    """
    decoders = [name for name in _DECODERS if any(row["decoder"] == name for row in norms)]
    figure = Figure(figsize=(4.2 * (len(decoders) + 1), 3.9), layout="constrained")
    with mpl.rc_context(OPEN_AXES):
        *panels, last = figure.subplots(1, len(decoders) + 1)
    for axes, decoder in zip(panels, decoders, strict=True):
        rows = [row for row in norms if row["decoder"] == decoder]
        for index, curve in enumerate(dict.fromkeys(row["curve"] for row in rows)):
            mine = [row for row in rows if row["curve"] == curve]
            _draw_curve(axes, mine, PALETTE[index], ("-", "--")[index % 2])
            each = [row for row in trials if (row["decoder"], row["curve"]) == (decoder, curve)]
            seeds = ([row["achieved"] for row in each], [row["accuracy"] for row in each])
            axes.plot(*seeds, ".", color=PALETTE[index], alpha=0.6, markersize=4)
        axes.axhline(base["accuracy"], color="0.4", linestyle=":", linewidth=1, label="base")
        axes.set_title(f"{_DECODERS[decoder]}, n = {rows[0]['total']} problems, {rows[0]['seeds']} seeds", fontsize=10)
        axes.set(ylabel="accuracy", ylim=(-0.02, 1.02))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    figure.suptitle(
        f"bands: 95 % intervals over {norms[0]['over']}, of shares the range of seeds; dots: seeds", fontsize=10
    )
    panels[0].plot([], [], "*", color="k", markersize=10, label="chosen on validation problems")
    panels[0].legend(loc="best", **_LEGEND)
    _draw_shares(last, shares)
    ticks = sorted({row["target_norm"] for row in norms})
    for axes in (*panels, last):
        axes.set_xscale("log")
        axes.set_xlabel("achieved bias norm, mean over layers of ‖b‖₂")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
    return figure


def _draw_curve(axes: Axes, rows: Sequence[TableRow], color: str, linestyle: str) -> None:
    norms, accuracy = [row["achieved"] for row in rows], [row["accuracy"] for row in rows]
    axes.plot(norms, accuracy, color=color, linestyle=linestyle, marker="o", markersize=4, label=rows[0]["curve"])
    low, high = ([row["accuracy"] if row[end] is None else row[end] for row in rows] for end in ("low", "high"))
    axes.fill_between(norms, low, high, color=color, alpha=0.15, linewidth=0)
    for row in rows:
        if row["chosen"]:
            axes.plot(row["achieved"], row["accuracy"], "*", color=color, markersize=12)
            note = f"{row['tied']} tied" if row["tied"] > 1 else "at the grid's end" if row["at_edge"] else ""
            axes.annotate(note, (row["achieved"], row["accuracy"]), (4, -14), textcoords="offset points", fontsize=7)


def _draw_shares(axes: Axes, shares: Sequence[TableRow]) -> None:
    curves = list(dict.fromkeys(row["curve"] for row in shares))
    for index, curve in enumerate(curves):
        for name, marker in zip(_SHARES, "os", strict=True):
            rows = [row for row in shares if (row["curve"], row["share_of"]) == (curve, name)]
            if not rows:
                continue
            norms = [row["achieved"] for row in rows]
            label = f"{_SHARES[name]}: {curve}" if len(curves) > 1 else _SHARES[name]
            fmt = marker + ("-", "--")[index % 2]
            axes.plot(norms, [row["share"] for row in rows], fmt, color=PALETTE[index], markersize=4, label=label)
            least, most = ([row[end] for row in rows] for end in ("least", "most"))
            axes.fill_between(norms, least, most, color=PALETTE[index], alpha=0.15, linewidth=0)
    for name, linestyle in zip(_SHARES, (":", "-."), strict=True):
        chance = next((row["chance"] for row in shares if row["share_of"] == name), None)
        if chance is not None:
            axes.axhline(chance, color="0.4", linestyle=linestyle, linewidth=1, label=f"{_SHARES[name]}: chance")
    axes.set(ylabel="|cosine| with the number direction")
    axes.set_title("share along the number direction", fontsize=10)
    top = max(max(row["most"] for row in shares), max(row["chance"] for row in shares))
    axes.set_ylim(0, 1.9 * top)  # room for the legend
    axes.legend(loc="upper left", **_LEGEND)


def ablation_figure(cells: Sequence[TableRow], base: TableRow) -> Figure:
    """Draws accuracy with its 95 % interval for each combination, labelled by the factors that are on.

    Args:
        cells: The rows of ``cells.csv``.
        base: The base's summary on the same problems.
    """
    figure = Figure(figsize=(8, 3.9), layout="constrained")
    with mpl.rc_context(OPEN_AXES):
        axes = figure.subplots()
    names = []
    for place, row in enumerate(reversed(cells)):
        low, high = (row["accuracy"] if row[end] is None else row[end] for end in ("low", "high"))
        error = [[row["accuracy"] - low], [high - row["accuracy"]]]
        color = PALETTE[0] if row["gate"] else PALETTE[1]
        axes.errorbar(row["accuracy"], place, xerr=error, fmt="o" if row["gate"] else "s", color=color, capsize=3)
        on = [name.replace("_", " ") for name in FACTORS if row[name]]
        names.append(" + ".join(on) or "none of the three")
    axes.axvline(base["accuracy"], color="0.4", linestyle=":", linewidth=1, label="base")
    axes.set_yticks(range(len(names)), names)
    first = cells[0]
    size = f"n = {first['total']} problems, {first['seeds']} seeds"
    axes.set(xlabel=f"accuracy (95 % interval over {first['over']}), {size}", xlim=(-0.02, 1.02))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    for label, fmt, color in (("under the gate", "o", PALETTE[0]), ("always on", "s", PALETTE[1])):
        axes.plot([], [], fmt, color=color, label=label)
    figure.legend(loc="outside upper right", ncols=3, **_LEGEND)
    return figure
