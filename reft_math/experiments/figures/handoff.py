"""Draws accuracy against the number of tokens from a source before the base goes on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from reft_math.files.plots import OPEN_AXES, PALETTE

# Lines of sources often coincide: the later line lets the earlier one show through.
STYLES = (("o", "-"), ("s", "-"), ("^", ":"))


def handoff_figure(table: Sequence[Mapping[str, Any]], sets: Mapping[str, Collection[str]]) -> Figure:
    """Draws a panel for each set of problems, with a line and its 95 % band for each source.

    Args:
        table, sets: From `reft_math.probes.handoff`.
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    with mpl.rc_context(OPEN_AXES):
        panels = figure.subplots(1, len(sets), sharey=True)
    sources = dict.fromkeys(row["source"] for row in table)
    lengths = [str(k) for k in dict.fromkeys(row["k"] for row in table)]
    for axes, (problems, ids) in zip(panels, sets.items(), strict=True):
        for index, source in enumerate(sources):
            rows = [row for row in table if (row["problems"], row["source"]) == (problems, source)]
            x = [str(row["k"]) for row in rows]  # categories: every k gets the same space, also 0
            marker, line = STYLES[index]
            style = {"color": PALETTE[index], "marker": marker, "markersize": 4, "linestyle": line, "label": source}
            axes.plot(x, [row["accuracy"] for row in rows], **style)
            band = ([row[name] for row in rows] for name in ("low", "high"))
            axes.fill_between(x, *band, color=PALETTE[index], alpha=0.15, linewidth=0)
        axes.set_title(f"{problems} (n = {len(ids)})", fontsize=10)
        axes.set_xticks(range(len(lengths)), lengths)
        axes.set_xlabel("k, tokens before the base goes on")
    panels[0].set(ylabel="accuracy (95 % interval)", ylim=(-0.02, 1.02))
    handles, labels = panels[0].get_legend_handles_labels()
    title = {"title": "first k tokens from", "title_fontsize": 8}
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8, **title)
    return figure
