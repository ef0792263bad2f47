"""Draws the bias norm against optimiser steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from reft_math.errors import UserError
from reft_math.files.plots import OPEN_AXES, PALETTE
from reft_math.scoring.comparison import Run, run_names
from reft_math.training.tracking import tracking


def bias_norm(run: Run) -> dict[str, Any]:
    """Reads a run's results on its bias norm, with ``trace`` (one number per step under each name), and `tracking`.

    Raises:
        UserError: It held none.
    """
    norm: dict[str, Any] = run.results.get("bias_norm") or {}
    trace = norm.get("trace") or {}
    if not trace.get("norm"):
        raise UserError(f"{run.folder} held no bias norm; pass output folders of train/prefix_reft.py")
    return {**norm, **tracking(trace["norm"], norm["target"])}


def trace_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Returns a row for each run and optimiser step, with the columns that all runs have."""
    traces = {name: bias_norm(run)["trace"] for name, run in _named(runs)}
    names = [name for name in next(iter(traces.values())) if all(name in trace for trace in traces.values())]
    return [
        {"run": run, **dict(zip(names, values, strict=True))}
        for run, trace in traces.items()
        for values in zip(*(trace[name] for name in names), strict=True)
    ]


def _named(runs: Sequence[Run]) -> list[tuple[str, Run]]:
    return list(zip(run_names([str(run.folder) for run in runs]), runs, strict=True))


def _course(norm: Mapping[str, Any]) -> str:
    """Describes for the legend how the target was held; empty if the norm never settled."""
    if norm["settling_step"] is None:
        return ""
    overshoot, error = max(norm["overshoot"], 0.0), norm["steady_state_error"]
    return f": overshoot {overshoot:.1%}, settled at step {norm['settling_step']}, then off by {error:+.2%}"


def norm_trace(runs: Sequence[Run]) -> Figure:
    """Draws the norm, and the distance of RED's scales from 1; one line per run, the target dashed."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    with mpl.rc_context(OPEN_AXES):
        norm_axes, scale_axes = figure.subplots(1, 2)
    for index, (name, run) in enumerate(_named(runs)):
        norm = bias_norm(run)
        style = {"color": PALETTE[index % len(PALETTE)], "linewidth": 1.3, "label": f"{name}{_course(norm)}"}
        norm_axes.plot(norm["trace"]["step"], norm["trace"]["norm"], **style)
        scale_axes.plot(norm["trace"]["step"], norm["trace"]["scale_norm"], **style)
    for target in sorted({bias_norm(run)["target"] for run in runs}):
        norm_axes.axhline(target, color="0.4", linestyle="--", linewidth=1, label=f"target {target:g}")
    norm_axes.set(xlabel="optimiser step", ylabel="bias norm, mean over layers of ‖b‖₂", yscale="log")
    scale_axes.set(xlabel="optimiser step", ylabel="mean over layers of ‖s − 1‖₂")
    norm_axes.legend(frameon=False, fontsize=8)
    return figure
