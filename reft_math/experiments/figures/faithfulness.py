"""Draws truth probes' scores of true and false statements as heat maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from reft_math.probes.truth import ALL, BASE, RESIDUAL, is_beyond_0

TableRow = Mapping[str, Any]

_FEW = 10  # questions; a cell with fewer stays blank
_BLANK = "0.85"
_DIVERGING = "RdBu_r"  # red up, blue down; told apart by colour-blind readers
_SMALL = 8  # columns; in more, figures would not fit into the cells
_DELTA = "true − false, change against\nthe base, log-odds (dot: 95 %\ninterval leaves out 0; by\nchance 1 in 20 does)"


def heads_figure(probes: Sequence[TableRow], scores: Sequence[TableRow]) -> Figure:
    """Draws layer by head: accuracy of the base's probes, then a panel for each source with its change from the base.

    Args:
        probes, scores: The rows of ``probes.csv`` and ``scores.csv``.
    """
    everywhere = [row for row in scores if row["position"] == ALL]
    sources = _others(everywhere)
    figure, (first, *panels) = _panels(len(sources) + 1)
    best = max(row["accuracy"] for row in probes)
    _heat_map(first, probes, "head", "accuracy", "cividis", Normalize(0.5, max(best, 0.6)), lambda row: False)
    _write_accuracies(first, probes)
    texts, questions = probes[0]["texts"], probes[0]["questions"]
    first.set_title(f"probes of the base\nn = {texts} texts, {questions} questions", fontsize=10)
    figure.colorbar(
        first.images[0], ax=first, label="held-out accuracy", format=PercentFormatter(1, decimals=0), shrink=0.8
    )
    _changes(figure, panels, sources, everywhere, "head")
    for axes in (first, *panels):
        axes.set_xlabel("attention head (res.: residual stream;\ngrey: its probe is at chance)")
    return figure


def _write_accuracies(axes: Axes, probes: Sequence[TableRow]) -> None:
    heads = list(dict.fromkeys(row["head"] for row in probes))
    if len(heads) > _SMALL:
        return
    scale = axes.images[0].norm
    for row in probes:
        color = "k" if scale(row["accuracy"]) > 0.6 else "w"
        place = heads.index(row["head"]), row["layer"]
        axes.text(*place, f"{row['accuracy']:.0%}", ha="center", va="center", fontsize=8, color=color)


def positions_figure(scores: Sequence[TableRow]) -> Figure:
    """Draws layer by position in the residual stream: the base's score, then a panel for each source with its change.

    Args:
        scores: The rows of ``scores.csv``.
    """
    rows = [row for row in scores if row["head"] == RESIDUAL and row["position"] != ALL]
    sources = _others(rows)
    figure, (first, *panels) = _panels(len(sources) + 1)
    base = [row for row in rows if row["source"] == BASE]
    _heat_map(first, base, "position", "score", _DIVERGING, _symmetric(base, "score"), lambda row: False)
    first.set_title("base", fontsize=10)
    figure.colorbar(first.images[0], ax=first, label="true − false, log-odds", shrink=0.8)
    _changes(figure, panels, sources, rows, "position")
    for axes in (first, *panels):
        axes.set_xlabel(f"position of the statement\n(below it n, questions;\ngrey: n < {_FEW}, or probe at chance)")
    return figure


def _others(rows: Sequence[TableRow]) -> list[str]:
    return [source for source in dict.fromkeys(row["source"] for row in rows) if source != BASE]


def _panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(1.2 + 3.1 * count, 3.6), layout="constrained")
    panels = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    panels[0].set_ylabel("layer")
    return figure, list(panels)


def _changes(
    figure: Figure, panels: Sequence[Axes], sources: Sequence[str], rows: Sequence[TableRow], column: str
) -> None:
    """Draws a panel for each source, all on one scale."""
    if not sources:
        return
    scale = _symmetric([row for row in rows if row["source"] != BASE], "delta")
    for axes, source in zip(panels, sources, strict=True):
        mine = [row for row in rows if row["source"] == source]
        _heat_map(axes, mine, column, "delta", _DIVERGING, scale, is_beyond_0)
        is_open = np.average([row["open"] for row in mine], weights=[row["pairs"] for row in mine])
        axes.set_title(f"{source}, n = {_most(mine)} questions\non after {is_open:.0%} of texts", fontsize=9)
        if not any(row["delta"] for row in mine):
            axes.text(0.5, 0.5, "exactly 0", ha="center", va="center", transform=axes.transAxes)
    figure.colorbar(ScalarMappable(scale, _DIVERGING), ax=list(panels), label=_DELTA, shrink=0.8)


def _heat_map(
    axes: Axes,
    rows: Sequence[TableRow],
    column: str,
    value: str,
    colours: str,
    scale: Normalize,
    is_marked: Callable[[TableRow], bool],
) -> None:
    """Draws a heat map: layers upwards, columns in the rows' order."""
    columns = list(dict.fromkeys(row[column] for row in rows))
    layers = max(row["layer"] for row in rows) + 1
    table = np.full((layers, len(columns)), np.nan)
    marks = []
    for row in rows:
        if not _is_shown(row):
            continue
        place = row["layer"], columns.index(row[column])
        table[place] = row[value]
        if is_marked(row):
            marks.append(place)
    axes.set_facecolor(_BLANK)
    axes.imshow(table, cmap=colours, norm=scale, aspect="auto", origin="lower")
    if marks:
        y, x = zip(*marks, strict=True)
        axes.plot(x, y, "o", color="k", markersize=2.5)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    labels = [_column_name(name, rows) for name in columns]
    step = -(-len(labels) // 12)  # more would not fit
    axes.set_xticks(range(0, len(labels), step), labels[::step])


def _column_name(name: str | int, rows: Sequence[TableRow]) -> str:
    """Returns the label of a head, or of a position with its number of questions."""
    if isinstance(name, str):
        return "res." if name == RESIDUAL else name
    questions = next(row["questions"] for row in rows if row["position"] == name)
    return f"{name}\n{questions}"


def _symmetric(rows: Sequence[TableRow], value: str) -> Normalize:
    reach = max((abs(row[value]) for row in rows if _is_shown(row)), default=0.0) or 1.0
    return Normalize(-reach, reach)


def _is_shown(row: TableRow) -> bool:
    """Blanks scores that are noise: of few questions, or of a probe at chance. Accuracies are always shown."""
    return bool(row["questions"] >= _FEW and (row["reads"] or "score" not in row))


def _most(rows: Sequence[TableRow]) -> int:
    return max(int(row["questions"]) for row in rows)
