"""Draws a training by reward against optimiser steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from reft_math.files.plots import OPEN_AXES, PALETTE
from reft_math.training.rl_trainer import THRESHOLD

_LABELS = {
    "norm": "bias norm, mean over layers of ‖b‖₂",
    "kl": "divergence of a prefix from the base, nats",
    "closing_position": f"tokens until it exceeds {THRESHOLD:g} nats",
}


def reward_trace(trace: Mapping[str, Sequence[float]], validation: Mapping[str, Any], target: float) -> Figure:
    """Draws right answers, norm, divergence and closing position.

    Args:
        trace: `NormControl.trace` of the run.
        validation: `PrefixRlTrainer.validation`; its best step is marked.
        target: The norm's set point.
    """
    figure = Figure(figsize=(10, 6), layout="constrained")
    with mpl.rc_context(OPEN_AXES):
        (right, *others), steps = figure.subplots(2, 2).flatten(), trace["step"]
    right.plot(steps, trace["right"], color=PALETTE[0], linewidth=1.3, label="drawn prefixes")
    right.plot(
        validation["steps"],
        validation["accuracy"],
        color=PALETTE[1],
        marker="o",
        label="greedy, validation",
    )
    right.axvline(validation["best_step"], color="0.4", linestyle=":", linewidth=1, label="step kept")
    right.set(ylabel="share of right answers", ylim=(-0.03, 1.03))
    right.legend(frameon=False, fontsize=8)
    for axes, (name, label) in zip(others, _LABELS.items(), strict=True):
        axes.plot(steps, trace[name], color=PALETTE[0], linewidth=1.3)
        axes.set(ylabel=label)
    others[0].axhline(target, color="0.4", linestyle="--", linewidth=1)
    for axes in figure.axes:
        axes.set(xlabel="optimiser step")
    return figure
