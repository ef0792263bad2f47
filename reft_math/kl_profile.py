"""The divergence of the two models along completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def kl_profile(records: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Per position t: the rows that measured ``D_t``, its mean and quantiles over them, the mean of ``C_t``; in nats.

    Args:
        records: Evaluation records with ``kl``.
    """
    longest = max(len(record["kl"]) for record in records)
    table = np.full((len(records), longest), np.nan)
    for row, record in zip(table, records, strict=True):
        row[: len(record["kl"])] = record["kl"]
    bands = np.array([[record.get("dead_band", 0.0)] for record in records])
    cumulative = np.nancumsum((table - bands).clip(min=0), axis=1)
    return [
        {
            "position": position,
            "rows": len(values),
            "mean": values.mean(),
            **dict(zip(("25 %", "median", "75 %", "95 %"), np.quantile(values, (0.25, 0.5, 0.75, 0.95)), strict=True)),
            "mean of C": cumulative[~np.isnan(table[:, position]), position].mean(),
        }
        for position in range(longest)
        for values in [table[~np.isnan(table[:, position]), position]]
    ]


def profile_gates(summaries: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each gate: accuracy with its 95 % interval, where it closed, and how many rows it never closed on.

    Args:
        summaries: From `reft_math.calibration.evaluate_gates`.
    """
    rows = []
    for gate, summary in summaries.items():
        low, high = summary["interval_95"]
        counts = {name: summary[name] for name in ("correct", "total", "accuracy")}
        closings = {name: value for name, value in summary.items() if "clos" in name}
        rows.append({"gate": gate, **counts, "low": low, "high": high, **closings})
    return rows
