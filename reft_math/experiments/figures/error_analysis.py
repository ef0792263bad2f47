"""Draws the first errors of wrong solutions, and the places of false equations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from reft_math.files.plots import OPEN_AXES, PALETTE

TableRow = Mapping[str, Any]

_COLOURS = {"false equation": PALETTE[1], "miscopied given": PALETTE[4], "plan": PALETTE[0], "unreadable": "0.8"}


def error_figure(errors: Sequence[TableRow], positions: Sequence[TableRow]) -> Figure:
    """Draws two panels: kinds of error as shares of the wrong solutions; false equations by part of a solution.

    Args:
        errors, positions: The rows of ``errors.csv`` and ``positions.csv``.
    """
    names = list(dict.fromkeys(_name(row) for row in errors))
    figure = Figure(figsize=(11, 1.8 + 0.35 * len(names)), layout="constrained")
    with mpl.rc_context(OPEN_AXES):
        left, right = figure.subplots(1, 2)
    _draw_kinds(left, names, errors)
    for index, name in enumerate(names):
        rows = [row for row in positions if _name(row) == name and row["share"] is not None]
        x, colour = [(row["from"] + row["to"]) / 2 for row in rows], PALETTE[index % len(PALETTE)]
        right.plot(x, [row["share"] for row in rows], color=colour, marker="o", markersize=4, label=name)
        right.fill_between(x, *([row[end] for row in rows] for end in ("low", "high")), color=colour, alpha=0.15)
    right.set(xlim=(0, 1), ylim=(0, None), xlabel="place in the solution", ylabel="false equations (95 % interval)")
    right.legend(frameon=False, fontsize=8)
    for axis in (left.xaxis, right.xaxis, right.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def _draw_kinds(axes: Axes, names: Sequence[str], errors: Sequence[TableRow]) -> None:
    ends = dict.fromkeys(names, 0.0)
    for kind, colour in _COLOURS.items():
        rows = [row for row in errors if row["kind"] == kind]
        shares = [row["share"] or 0.0 for row in rows]
        starts = [ends[_name(row)] for row in rows]
        axes.barh([_name(row) for row in rows], shares, left=starts, color=colour, label=kind, height=0.6)
        ends = {name: start + share for name, start, share in zip(names, starts, shares, strict=True)}
    wrong = {_name(row): f"{_name(row)}\n{row['wrong']} of {row['problems']} wrong" for row in errors}
    axes.set_yticks(range(len(names)), [wrong[name] for name in names], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="share of the wrong solutions, by their first error")
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))


def _name(row: TableRow) -> str:
    return f"{row['run']}:{row['decoder']}"
