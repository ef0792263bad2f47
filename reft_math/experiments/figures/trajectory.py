"""Draws the likelihood of texts by position, and where greedy paths diverge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure, SubFigure

from reft_math.files.plots import OPEN_AXES, PALETTE
from reft_math.probes.trajectory import FATES, SCORERS

FATE_COLORS = (PALETTE[2], PALETTE[0], PALETTE[4], "0.6")


def trajectory_figure(positions: Sequence[Mapping[str, Any]], partings: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws, above, mean log-likelihood by position: a panel for each kind of text, a line for each scorer. Below, the
    positions at which two decoders' answers part: a panel for each pair, bars divided by what became of both.

    Args:
        positions, partings: ``position_table`` and ``parting_table`` of `reft_math.probes.trajectory`.
    """
    figure = Figure(figsize=(12, 7), layout="constrained")
    above, below = figure.subfigures(2, 1)
    with mpl.rc_context(OPEN_AXES):
        _likelihoods(above, positions)
        _partings(below, partings)
    return figure


def _likelihoods(figure: SubFigure, positions: Sequence[Mapping[str, Any]]) -> None:
    texts = list(dict.fromkeys(row["text"] for row in positions))
    panels = figure.subplots(1, len(texts), sharey=True, squeeze=False)[0]
    for axes, text in zip(panels, texts, strict=True):
        for index, scorer in enumerate(SCORERS):
            rows = [row for row in positions if (row["text"], row["scorer"]) == (text, scorer)]
            num_texts = rows[0]["rows"]
            # With few texts left the lines would be noise.
            rows = [row for row in rows if row["rows"] >= max(2, 0.1 * num_texts)]
            x, style = [row["position"] for row in rows], {"color": PALETTE[index], "linestyle": ("-", "-", ":")[index]}
            axes.plot(x, [row["mean"] for row in rows], linewidth=1.3, label=scorer, **style)
            band = ([row[name] for row in rows] for name in ("low", "high"))
            axes.fill_between(x, *band, color=PALETTE[index], alpha=0.15, linewidth=0)
        title = "reference solutions" if text == "reference" else f"answers by {text}"
        axes.set_title(f"{title} (n = {num_texts})", fontsize=10)
        axes.set_xlabel("position of the token")
    panels[0].set_yscale("symlog", linthresh=0.01)
    panels[0].set_ylim(top=1e-3)  # shows a line at 0 whole
    panels[0].set_ylabel("log-likelihood, nats a token\n(mean, 95 % interval)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8, title="likelihood under")


def _partings(figure: SubFigure, partings: Sequence[Mapping[str, Any]]) -> None:
    pairs = list(dict.fromkeys((row["first"], row["second"]) for row in partings))
    panels = figure.subplots(1, len(pairs), sharex=True, squeeze=False)[0]
    for axes, pair in zip(panels, pairs, strict=True):
        ours = [row for row in partings if (row["first"], row["second"]) == pair]
        rows = [row for row in ours if row["position"] is not None]
        bottom = [0] * len(rows)
        for fate, color in zip(FATES, FATE_COLORS, strict=True):
            counts = [row[fate] for row in rows]
            axes.bar([row["position"] for row in rows], counts, width=1, bottom=bottom, color=color, label=fate)
            bottom = [low + count for low, count in zip(bottom, counts, strict=True)]
        total = sum(row[fate] for row in ours for fate in FATES)
        axes.set_title(f"{pair[0]} / {pair[1]} ({sum(bottom)} of n = {total} part)", fontsize=10)
        axes.set_xlabel("position of the first token that differs")
        axes.yaxis.get_major_locator().set_params(integer=True)
    panels[0].set_ylabel("problems")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8, title="what became of both")
