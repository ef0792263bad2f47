"""Draws probes' errors, wrong sums under pushes along the probes, and adapters' changes along them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from reft_math.files.plots import OPEN_AXES, PALETTE

TableRow = Mapping[str, Any]

_FEW = 30  # numbers; a place with fewer is left out
_PLACES = ("question", "term", "result", "upcoming")
_DIRECTIONS = {
    "probe": ("number probe", "o-"),
    "random": ("random", "s-"),
    "orthogonal": ("orthogonal to all probes", "^:"),
}
_LEGEND = {"fontsize": 8, "facecolor": "w", "edgecolor": "none", "framealpha": 1}
_DASHED = {"color": "k", "linestyle": "--", "linewidth": 1}


def probes_figure(readings: Sequence[TableRow]) -> Figure:
    """Draws R² and mean error by layer for each kind of probe; below, R² by layer and place.

    Args:
        readings: The rows of ``probes.csv``.
    """
    figure = Figure(figsize=(12, 6.8), layout="constrained")
    with mpl.rc_context(OPEN_AXES):
        axes = figure.subplot_mosaic([["identity", "log2", "error"], ["places"] * 3])
    whole = [row for row in readings if row["where"] == row["place"] == "all"]
    for name, target, measure in (
        ("identity", "identity", "r2"),
        ("log2", "log2", "r2"),
        ("error", "identity", "error"),
    ):
        _draw_layers(axes[name], [row for row in whole if row["target"] == target], measure)
    for name, title in (("identity", "target: the number"), ("log2", "target: its log2")):
        axes[name].set(ylabel="R² on held-out problems", title=title, ylim=(None, 1.02))
    axes["error"].set(ylabel="mean |ŷ − y|, numbers", title="read-out error", yscale="log")
    axes["error"].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes["error"].yaxis.set_major_formatter("{x:g}")
    axes["error"].yaxis.set_minor_formatter(NullFormatter())
    axes["identity"].legend(loc="lower right", **_LEGEND)
    _draw_places(axes["places"], readings)
    return figure


def _draw_layers(axes: Axes, rows: Sequence[TableRow], measure: str) -> None:
    for site in dict.fromkeys(row["site"] for row in rows):
        for index, reads in enumerate(dict.fromkeys(row["reads"] for row in rows)):
            line = [row for row in rows if (row["site"], row["reads"]) == (site, reads)]
            label = f"{reads} (n = {line[0]['numbers']})"
            if site != "block":
                label = f"the same at {site}" if index == 0 else "_"
            style = {"fmt": "o-" if site == "block" else "s:", "label": label, "color": PALETTE[index]}
            _draw_line(axes, line, "layer", measure, (f"{measure}_low", f"{measure}_high"), **style)
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_places(axes: Axes, readings: Sequence[TableRow]) -> None:
    """Selects the probe of all numbers for numbers at their end, and the results' own for upcoming results."""
    kind = {"site": "block", "target": "identity"}
    rows = [row for row in readings if kind.items() <= row.items() and row["reads"] in ("number", "upcoming")]
    rows = [row for row in rows if row["place"] != "all" and row["numbers"] >= _FEW and row["r2"] is not None]
    columns = sorted({(row["where"], row["place"], row["numbers"]) for row in rows}, key=_column_order)
    layers = sorted({row["layer"] for row in rows})
    r2 = {(row["where"], row["place"], row["layer"]): row["r2"] for row in rows}
    table = [[r2[where, place, layer] for where, place, _ in columns] for layer in layers]
    axes.set(
        ylabel="layer", title=f"R² by place of at least {_FEW} numbers, target: the number (below 0 in the colour of 0)"
    )
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if not rows:
        return
    image = axes.imshow(table, cmap="cividis", vmin=0, vmax=1, aspect="auto", origin="lower")
    labels = [f"{where[:-1]}: {place}\nn = {numbers}" for where, place, numbers in columns]
    axes.set_xticks(range(len(labels)), labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)
    figure = axes.get_figure()
    assert figure is not None
    figure.colorbar(image, ax=axes, label="R²", pad=0.01)
    if len(layers) <= 8:  # more, and the digits would not fit
        for y, line in enumerate(table):
            for x, value in enumerate(line):
                axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color="w" if value < 0.6 else "k")


def _column_order(column: tuple[str, str, int]) -> tuple[bool, int, int]:
    where, place, _ = column
    kind, _, count = place.partition(" ")
    return where != "sums", _PLACES.index(kind), int(count)


def pushes_figure(pushes: Sequence[TableRow], thresholds: Sequence[TableRow]) -> Figure:
    """Draws the share of wrong sums against α: a panel for each set of layers, a line and 95 % band per direction.

    Args:
        pushes: The rows of ``pushes.csv``.
        thresholds: The rows of ``thresholds.csv``; those of the probes' own directions are drawn.
    """
    places = list(dict.fromkeys(row["where"] for row in pushes))
    figure = Figure(figsize=(4.2 * len(places), 3.8), layout="constrained")
    with mpl.rc_context(OPEN_AXES):
        panels = figure.subplots(1, len(places), sharex=True, sharey=True, squeeze=False)[0]
    smallest = min(abs(row["alpha"]) for row in pushes if row["alpha"])
    for axes, where in zip(panels, places, strict=True):
        here = [row for row in pushes if row["where"] == where]
        for index, (direction, (name, fmt)) in enumerate(_DIRECTIONS.items()):
            rows = [row for row in here if row["direction"] == direction]
            label = f"{name}, {rows[0]['draws']} draws" if rows[0]["draws"] > 1 else name
            _draw_line(axes, rows, "alpha", "error_rate", ("low", "high"), fmt=fmt, label=label, color=PALETTE[index])
        for row in thresholds:
            if (row["where"], row["direction"]) == (where, "probe") and row["threshold"] is not None:
                axes.axvline(float(f"{row['sign']}{row['threshold']}"), **_DASHED)
        norm = max(row["alpha_raw"] / row["alpha"] for row in here if row["alpha"])
        of = "the layers' mean" if where == "all layers" else "the layer's"
        axes.set_xscale("symlog", linthresh=smallest)
        axes.set(xlabel=f"α, in mean residual norms\n(1 is {norm:.4g} raw, {of})")
        axes.set_title(f"{where}, n = {here[0]['sums']} sums", fontsize=10)
        axes.xaxis.set_major_formatter("{x:g}")
    panels[0].set_yscale("symlog", linthresh=0.01)
    panels[0].set(ylabel="wrong sums, too high or too low", ylim=(0, 1.1), yticks=(0, 0.01, 0.1, 1))
    panels[0].yaxis.set_major_formatter(PercentFormatter(1))
    panels[0].plot([], [], label="probe: 5 in 1,000 more wrong", **_DASHED)
    panels[0].legend(loc="upper center", **_LEGEND)
    return figure


def changes_figure(
    histogram: Sequence[TableRow],
    shares: Sequence[TableRow],
    positions: Sequence[TableRow],
    breaking: Mapping[str, float | None],
) -> Figure:
    """Draws a histogram of changes along the probes for each source, a line per layer; then their sum by position.

    Args:
        histogram, shares, positions: The rows of ``changes.csv``, ``shares.csv`` and ``positions.csv``.
        breaking: Breaking points as ``|α|`` by sign; dashed.
    """
    sources = list(dict.fromkeys(row["source"] for row in positions))
    figure = Figure(figsize=(4.0 * (len(sources) + 1), 3.8), layout="constrained")
    with mpl.rc_context(OPEN_AXES):
        *panels, sums = figure.subplots(1, len(sources) + 1)
    layers = list(dict.fromkeys(row["layer"] for row in histogram))
    ends = [float(f"{sign}{point}") for sign, point in breaking.items() if point is not None]
    for axes, source in zip(panels, sources, strict=True):
        _draw_histogram(axes, [row for row in histogram if row["source"] == source], layers)
        share = next(row for row in shares if (row["source"], row["layer"]) == (source, "all"))
        axes.set_title(f"{source}, n = {share['changes']} (tokens × layers)\n{_share_text(share)}", fontsize=10)
        axes.set(xlabel="change along the probe, in mean residual norms", yscale="log")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        for end in ends:
            axes.axvline(end, **_DASHED)
    panels[0].set_ylabel("share of the layer's changes in a bin")
    panels[0].legend(loc="upper right", **_LEGEND)
    for index, source in enumerate(sources):
        rows = [row for row in positions if row["source"] == source]
        rows = [row for row in rows if row["solutions"] >= 0.1 * rows[0]["solutions"]]  # fewer would be noise
        style = {"fmt": "-", "label": source, "color": PALETTE[index]}
        _draw_line(sums, rows, "position", "mean", ("5 %", "95 %"), **style)
    for end in ends:
        sums.axhline(end * len(layers), **_DASHED)
    if ends:
        sums.plot([], [], label="sums break", **_DASHED)
    n = max(row["solutions"] for row in positions)
    sums.set_title(f"sum over layers, n = {n} solutions\nmean, and 5 to 95 % of the solutions", fontsize=10)
    sums.set(xlabel="position of the token", ylabel="sum of changes, in mean residual norms")
    sums.margins(y=0.6)  # room for the legend above the line
    sums.legend(loc="upper right", **_LEGEND)
    return figure


def _draw_histogram(axes: Axes, rows: Sequence[TableRow], layers: Sequence[int]) -> None:
    """Returns layers' colours: the palette's if it is large enough, else from dark to light with three labels."""
    has_colours = len(layers) <= len(PALETTE)
    named = layers if has_colours else (layers[0], layers[len(layers) // 2], layers[-1])
    for index, layer in enumerate(layers):
        color = PALETTE[index] if has_colours else mpl.colormaps["cividis"](index / (len(layers) - 1))
        bins = [row for row in rows if row["layer"] == layer]
        total = sum(row["changes"] for row in bins) or 1
        edges = [bins[0]["from"], *(row["to"] for row in bins)]
        label = f"layer {layer}" if layer in named else "_"
        axes.stairs([row["changes"] / total for row in bins], edges, color=color, linewidth=1.2, label=label)


def _share_text(share: TableRow) -> str:
    if share["share"] is None:
        return "sums never broke" if share["changes"] else "the gate never opened"
    interval = "" if share["low"] is None else f" ({share['low']:.2%}–{share['high']:.2%})"
    return f"beyond: {share['share']:.2%}{interval}"


def _draw_line(
    axes: Axes, rows: Sequence[TableRow], x: str, y: str, band: tuple[str, str], *, fmt: str, label: str, color: str
) -> None:
    """Draws columns of a table as a line with a band."""
    columns = {name: [row[name] for row in rows] for name in (x, y, *band)}
    axes.plot(columns[x], columns[y], fmt, color=color, markersize=3.5, linewidth=1.3, label=label)
    low, high = band
    axes.fill_between(columns[x], columns[low], columns[high], color=color, alpha=0.15, linewidth=0)
