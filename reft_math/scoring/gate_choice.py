"""Measures accuracy by gate, and chooses a gate by it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from interventions.gates import parse_gate
from reft_math.data.problem import Problem
from reft_math.decoding.completions import Complete
from reft_math.scoring.evaluate import Score, accuracy_cell, evaluate, summarise
from reft_math.scoring.lengths import tokens_cell

# In nats. The interventions always draw the first token, which decides the path: its divergence often exceeds that of
# all later tokens, and without ``min=1`` a prompt whose first token exceeds the threshold gets no intervention at all.
KL_GATES = tuple(f"kl:{nats},min=1" for nats in ("0.25", "0.5", "1", "2", "4", "8", "16"))
GATE_COLUMNS = ("gate", "correct", "total", "accuracy", "95 % interval", "tokens", "cut off", "closes at", "never")


def evaluate_gates(
    gates: Sequence[str],
    problems: Sequence[Problem],
    completer: Callable[[str], Complete],
    score: Score,
    folder: Path,
    batch_size: int,
) -> dict[str, dict[str, Any]]:
    """Returns each gate's summary, with the median closing position and the number of rows that never closed.

    Args:
        gates: Gates as text.
        problems: Problems to solve.
        completer: Maps a gate to a function that completes under it.
        score: As in `evaluate`.
        folder: Folder of the records, one file per gate; finished rows in them are not done again.
        batch_size: Completions per batch.
    """
    summaries = {}
    for gate in gates:
        path = gate_records(folder, gate)
        records = evaluate(problems, completer(gate), score, path, f"gate {gate}", batch_size=batch_size)
        summaries[gate] = {**summarise(records), **_closings(records)}
    return summaries


def gate_records(folder: Path, gate: str) -> Path:
    """Returns the file in which `evaluate_gates` keeps a gate's records."""
    return folder / f"{re.sub('[^a-z0-9.+-]+', '-', gate)}.jsonl"


def best_gate(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the most accurate gate. Among tied gates the last wins: in order of closing it closes the latest."""
    most = max(summary["correct"] for summary in summaries.values())
    return [gate for gate, summary in summaries.items() if summary["correct"] == most][-1]


def tie_note(summaries: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Returns a line on gates that are all equally good, between which `best_gate` chose nothing; else None."""
    first = next(iter(summaries.values()))
    if len(summaries) < 2 or any(summary["correct"] != first["correct"] for summary in summaries.values()):
        return None
    return (
        f"note: all gates have {first['correct']} of {first['total']} right, so the last was taken; more validation"
        " problems, longer training or other thresholds may tell them apart"
    )


def _closings(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns quartiles over the rows that closed; None for stock generation, whose gates never close."""
    names = ("first_quartile", "median", "third_quartile")
    if "closing_position" not in records[0]:
        return {**{f"{name}_closing_position": None for name in names}, "never_closed": None}
    positions = [row["closing_position"] for row in records if row["closing_position"] is not None]
    found = np.quantile(positions, (0.25, 0.5, 0.75), method="lower").tolist() if positions else [None] * 3
    quartiles = {f"{name}_closing_position": place for name, place in zip(names, found, strict=True)}
    return {**quartiles, "never_closed": len(records) - len(positions)}


def gate_rows(summaries: Mapping[str, Mapping[str, Any]], best: str | None = None) -> list[list[str]]:
    """Returns table rows for `GATE_COLUMNS`; the best is marked."""
    rows = []
    for gate, summary in summaries.items():
        low, high = summary["interval_95"]
        counts = (summary.get("unfinished"), summary["median_closing_position"], summary["never_closed"])
        row = [f"{gate} *" if gate == best else gate, str(summary["correct"]), str(summary["total"])]
        row += [accuracy_cell(summary), f"{low:.1%} - {high:.1%}"]
        row += [tokens_cell(summary["mean_tokens"], summary.get("tokens_interval_95"))]
        rows.append([*row, *("-" if count is None else str(count) for count in counts)])
    return rows


def gate_table(summaries: Mapping[str, Mapping[str, Any]], best: str | None = None) -> dict[str, list[list[str]]]:
    """Returns the table of ``results.json`` for reports, the header first."""
    title = "accuracy by gate" + (", * was chosen" if best else "")
    return {title: [list(GATE_COLUMNS), *gate_rows(summaries, best)]}


def summarise_noise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarises ``D_t`` over all tokens and ``C`` over rows for an adapter without effect: the noise floor.

    Args:
        rows: Completions under a gate that measures divergence and stays open.

    Returns:
        ``rows``, ``tokens``; in nats ``mean`` and ``max`` of ``D_t``, ``cumulative``, the largest row's ``Σ_t D_t``,
        ``dead_band`` and ``counted``, the largest row's ``C`` after it.
    """
    values = np.concatenate([row["kl"] for row in rows])
    return {
        "rows": len(rows),
        "tokens": len(values),
        "mean": float(values.mean()),
        "max": float(values.max()),
        "cumulative": max(sum(row["kl"]) for row in rows),
        "dead_band": rows[0].get("dead_band", 0.0),
        "counted": max(row["cumulative_kl"] for row in rows),
    }


def noise_line(floor: Mapping[str, Any]) -> str:
    """Returns `summarise_noise` as a sentence, with the base's ``dtype``."""
    line = (
        f"noise floor in {floor['dtype']}, the adapter at a thousandth of its size ({floor['rows']} problems,"
        f" {floor['tokens']} tokens): D {floor['mean']:.2g} nats a token, at most {floor['max']:.2g}; C at most"
        f" {floor['cumulative']:.2g}"
    )
    band = f", {floor['counted']:.2g} after the dead band of {floor['dead_band']:g}"
    return line + band if floor["dead_band"] else line


def read_gates(texts: Sequence[str]) -> list[str]:
    """Returns gates in their standard spelling; a mistake is reported before anything is loaded."""
    return [str(parse_gate(text)) for text in texts]
