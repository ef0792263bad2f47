"""Draws divergence along completions, and accuracy against the gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from interventions.gates import KLGate, TokenGate, parse_gate
from reft_math.files.plots import OPEN_AXES, PALETTE

_TOKENS = "first N tokens"


def kl_profile_figure(
    profile: Sequence[Mapping[str, float]],
    gates: Mapping[str, Mapping[str, Any]],
    levels: Mapping[str, Mapping[str, Any]],
) -> Figure:
    """Draws four panels: ``D_t`` and closing gates by position, accuracy against the threshold and number of tokens.

    Args:
        profile: From `reft_math.experiments.kl_profile`.
        gates: Each gate's evaluation summary.
        levels: Summaries whose accuracies are drawn as horizontal lines, such as the base's.
    """
    figure = Figure(figsize=(11, 7), layout="constrained")
    with mpl.rc_context(OPEN_AXES):
        (divergence, closings), (thresholds, tokens) = figure.subplots(2, 2)
    total = next(iter(levels.values()))["total"]
    figure.suptitle(f"n = {total} problems; accuracies with 95 % intervals", fontsize=10)
    _draw_divergence(divergence, profile)
    for index, (family, points) in enumerate(_families(gates).items()):
        x, summaries = zip(*sorted(points, key=lambda point: point[0]), strict=True)
        _draw_accuracy(tokens if family == _TOKENS else thresholds, x, summaries, family, PALETTE[index])
        if family != _TOKENS:
            _draw_closings(closings, x, summaries, family, PALETTE[index])
    for axes in (thresholds, tokens):
        for style, (name, level) in zip(("--", ":", "-."), levels.items(), strict=False):
            axes.axhline(level["accuracy"], color="0.4", linestyle=style, linewidth=1, label=name)
        axes.set(ylabel="accuracy", ylim=(0, 1.02))
    closings.set(ylabel="closing position, token")
    closings.set_title("median and quartiles of the gates that close", fontsize=10)
    for axes, label in (
        (closings, "threshold, nats"),
        (thresholds, "threshold, nats"),
        (tokens, "tokens with interventions"),
    ):
        axes.set(xlabel=label, xscale="log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
        else:
            axes.remove()  # no gate of that kind closed
    return figure


def _draw_divergence(axes: Axes, profile: Sequence[Mapping[str, float]]) -> None:
    # With few rows left the lines would be noise.
    profile = [row for row in profile if row["rows"] >= 0.1 * profile[0]["rows"]]
    positions = [row["position"] for row in profile]
    axes.plot(positions, [row["mean"] for row in profile], color=PALETTE[0], label="mean")
    for name, style in (("median", "--"), ("95 %", ":")):
        axes.plot(positions, [row[name] for row in profile], style, color=PALETTE[0], linewidth=1, label=name)
    low, high = ([row[name] for row in profile] for name in ("25 %", "75 %"))
    axes.fill_between(positions, low, high, color=PALETTE[0], alpha=0.2, linewidth=0, label="quartiles")
    axes.set(xlabel="position of the token", ylabel="D, nats")
    axes.set_title("divergence along always-on completions", fontsize=10)
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8, ncols=2)


def _draw_accuracy(
    axes: Axes, x: Sequence[float], summaries: Sequence[Mapping[str, Any]], family: str, color: str
) -> None:
    low, high = zip(*(summary["interval_95"] for summary in summaries), strict=True)
    axes.plot(x, [summary["accuracy"] for summary in summaries], "o-", markersize=3, color=color, label=family)
    axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)


def _draw_closings(
    axes: Axes, x: Sequence[float], summaries: Sequence[Mapping[str, Any]], family: str, color: str
) -> None:
    """Draws closing positions; gates that closed on no row have none."""
    points = [
        (threshold, *(summary[f"{name}_closing_position"] for name in ("first_quartile", "median", "third_quartile")))
        for threshold, summary in zip(x, summaries, strict=True)
        if summary["median_closing_position"] is not None
    ]
    if points:
        at, low, median, high = zip(*points, strict=True)
        axes.plot(at, median, "o-", markersize=3, color=color, label=family)
        axes.fill_between(at, low, high, color=color, alpha=0.15, linewidth=0)


def _families(gates: Mapping[str, Mapping[str, Any]]) -> dict[str, list[tuple[float, Mapping[str, Any]]]]:
    """Groups gates that differ in only one number by their common part."""
    families: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    for text, summary in gates.items():
        gate = parse_gate(text)
        if isinstance(gate, TokenGate):
            families.setdefault(_TOKENS, []).append((gate.num_tokens, summary))
        elif isinstance(gate, KLGate):
            rest = text.partition(",")[2]
            families.setdefault(f"C ≤ threshold, {rest}" if rest else "C ≤ threshold", []).append(
                (gate.threshold, summary)
            )
    return families
