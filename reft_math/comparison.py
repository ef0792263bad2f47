"""Runs side by side: what each was, what it scored, and the paired test against one of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reft_math.command import RESULTS_NAME
from reft_math.errors import UserError
from reft_math.scoring.records import RecordFile
from reft_math.scoring.statistics import McNemar, mcnemar

COLUMNS = (
    "run",
    "decoder",
    "rows",
    "lr",
    "parameters",
    "norm",
    "tracking",
    "correct",
    "accuracy",
    "95 % interval",
    "p",
)


@dataclass(frozen=True)
class Run:
    """The output folder of a training or an evaluation command."""

    folder: Path
    results: dict[str, Any]

    @classmethod
    def read(cls, folder: str) -> Run:
        path = Path(folder) / RESULTS_NAME
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"a run is an output folder with a readable {RESULTS_NAME}; {path}: {reason}") from None
        return cls(Path(folder), results)

    def correct(self, decoder: str) -> dict[str, bool]:
        """Whether each problem was solved, by id."""
        path = self.folder / "records" / f"{decoder}.jsonl"
        if not path.is_file():
            raise UserError(f"{self.folder} has no decoder {decoder!r}; it has {', '.join(self.results['evaluation'])}")
        records = RecordFile(path).done
        if any("problem" in record for record in records.values()):
            raise UserError(f"a paired test needs one completion a problem; {self.folder} ({decoder}) holds samples")
        return {name: bool(record["correct"]) for name, record in records.items()}


def paired_test(run: Run, decoder: str, reference: dict[str, bool]) -> McNemar:
    """The exact McNemar test of a decoder against a reference on the same problems.

    Raises:
        UserError: The two did not solve the same problems.
    """
    correct = run.correct(decoder)
    if correct.keys() != reference.keys():
        raise UserError(
            f"a paired test needs the same problems; {run.folder} ({decoder}) has others than the reference"
        )
    return mcnemar([reference[name] for name in correct], list(correct.values()))


def comparison_rows(runs: Sequence[Run], reference: dict[str, bool]) -> list[list[str]]:
    """Table rows for `COLUMNS`: one per run and decoder."""
    rows = []
    for run in runs:
        norm, learning_rate = run.results.get("bias_norm"), run.results["config"].get("learning_rate")
        about = [str(run.results.get("train_rows", "-")), "-" if learning_rate is None else f"{learning_rate:g}"]
        about.append(f"{run.results['trainable_parameters']:,}" if "trainable_parameters" in run.results else "-")
        about.append("-" if norm is None else f"{norm['achieved']:.3f}")
        tracking = None if norm is None else norm["tracking_error"]
        about.append("-" if tracking is None else f"{tracking:.1%}")
        for decoder, summary in run.results["evaluation"].items():
            # First, for it refuses samples, which may lack an interval.
            p_value = paired_test(run, decoder, reference).p_value
            low, high = summary["interval_95"]
            score = [
                f"{summary['correct']}/{summary['total']}",
                f"{summary['accuracy']:.1%}",
                f"{low:.1%} - {high:.1%}",
            ]
            rows.append([run.folder.name, decoder, *about, *score, f"{p_value:.2g}"])
    return rows
