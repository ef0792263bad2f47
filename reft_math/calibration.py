"""Choosing a gate by accuracy on the validation split."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reft_math.completion import Complete
from reft_math.data.problem import Problem
from reft_math.evaluation import Score, evaluate, summarise

# In nats. The interventions always draw the first token, which decides the path: under the base it often costs more
# than all that follows, and without ``min=1`` a prompt on which it costs more than the threshold gets none of them.
KL_GATES = tuple(f"kl:{nats},min=1" for nats in ("0.25", "0.5", "1", "2", "4", "8", "16"))
CALIBRATION_COLUMNS = ("gate", "correct", "total", "accuracy", "95 % interval", "tokens", "closes at", "never")


@dataclass(frozen=True)
class Calibration:
    """Each candidate's summary on the validation split, and the best of them."""

    summaries: dict[str, dict[str, Any]]
    best: str

    def to_dict(self) -> dict[str, Any]:
        return {"best": self.best, "gates": self.summaries}


def calibrate(
    gates: Sequence[str],
    problems: Sequence[Problem],
    completer: Callable[[str], Complete],
    score: Score,
    folder: Path,
    batch_size: int,
) -> Calibration:
    """Evaluates gates and picks the most accurate; of several, the last: it closes no sooner than it must.

    Args:
        gates: Candidates, as text, in the order in which they close.
        problems: The validation split.
        completer: From a gate to completions under it.
        score: As in `evaluate`.
        folder: Holds the records, a file a gate; finished rows in them are not done again.
        batch_size: Completions at once.
    """
    summaries = {}
    for gate in gates:
        path = folder / f"{re.sub('[^a-z0-9.]+', '-', gate)}.jsonl"
        records = evaluate(problems, completer(gate), score, path, f"gate {gate}", batch_size=batch_size)
        summaries[gate] = {**summarise(records), **closings(records)}
    most = max(summary["correct"] for summary in summaries.values())
    return Calibration(summaries, [gate for gate in gates if summaries[gate]["correct"] == most][-1])


def closings(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The median closing position, of the rows whose gate closed, and how many never closed."""
    positions = sorted(row["closing_position"] for row in records if row["closing_position"] is not None)
    median = positions[(len(positions) - 1) // 2] if positions else None
    return {"median_closing_position": median, "never_closed": len(records) - len(positions)}


def calibration_rows(calibration: Calibration) -> list[list[str]]:
    """Table rows for `CALIBRATION_COLUMNS`; the best is marked."""
    rows = []
    for gate, summary in calibration.summaries.items():
        low, high = summary["interval_95"]
        median = summary["median_closing_position"]
        row = [f"{gate} *" if gate == calibration.best else gate, str(summary["correct"]), str(summary["total"])]
        row += [f"{summary['accuracy']:.1%}", f"{low:.1%} - {high:.1%}", f"{summary['mean_tokens']:.0f}"]
        rows.append([*row, "-" if median is None else str(median), str(summary["never_closed"])])
    return rows
