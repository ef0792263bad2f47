"""Divergence along completions, and accuracy against the gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from reft_math.decoding.gate import KLGate, TokenGate, parse_gate
from reft_math.figures.norm_trace import PALETTE


def kl_profile_figure(
    profile: Sequence[Mapping[str, float]], gates: Mapping[str, Mapping[str, Any]], levels: Mapping[str, float]
) -> Figure:
    """Three panels: ``D_t`` by position, accuracy against the threshold, accuracy against a number of tokens.

    Args:
        profile: From `reft_math.kl_profile`.
        gates: Each gate's evaluation summary.
        levels: Accuracies drawn across, such as the base's.
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        divergence, thresholds, tokens = figure.subplots(1, 3)
    # Where few rows are left the lines would be noise.
    profile = [row for row in profile if row["rows"] >= 0.1 * profile[0]["rows"]]
    positions = [row["position"] for row in profile]
    divergence.plot(positions, [row["mean"] for row in profile], color=PALETTE[0], label="mean")
    quartiles = ([row[name] for row in profile] for name in ("25 %", "75 %"))
    divergence.fill_between(positions, *quartiles, color=PALETTE[0], alpha=0.2, linewidth=0, label="quartiles")
    divergence.set(xlabel="position of the token", ylabel="D, nats")
    divergence.set_yscale("symlog", linthresh=0.01)
    divergence.set_ylim(bottom=0)
    divergence.legend(frameon=False, fontsize=8)
    for index, (family, points) in enumerate(_families(gates).items()):
        axes = tokens if family == "first N tokens" else thresholds
        x, summaries = zip(*sorted(points, key=lambda point: point[0]), strict=True)
        accuracy = [summary["accuracy"] for summary in summaries]
        low, high = zip(*(summary["interval_95"] for summary in summaries), strict=True)
        axes.plot(x, accuracy, marker="o", markersize=3, color=PALETTE[index], label=family)
        axes.fill_between(x, low, high, color=PALETTE[index], alpha=0.15, linewidth=0)
    for axes, label in ((thresholds, "threshold, nats"), (tokens, "tokens with interventions")):
        for style, (name, level) in zip(("--", ":", "-."), levels.items(), strict=False):
            axes.axhline(level, color="0.4", linestyle=style, linewidth=1, label=name)
        axes.set(xlabel=label, ylabel="accuracy", xscale="log", ylim=(0, 1.02))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.legend(frameon=False, fontsize=8)
    return figure


def _families(gates: Mapping[str, Mapping[str, Any]]) -> dict[str, list[tuple[float, Mapping[str, Any]]]]:
    """Gates that differ in one number only, by what they have in common."""
    families: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    for text, summary in gates.items():
        gate = parse_gate(text)
        if isinstance(gate, TokenGate):
            families.setdefault("first N tokens", []).append((gate.num_tokens, summary))
        elif isinstance(gate, KLGate):
            rest = text.partition(",")[2]
            families.setdefault(f"C ≤ threshold, {rest}" if rest else "C ≤ threshold", []).append(
                (gate.threshold, summary)
            )
    return families
