"""Regression runs side by side: what each was, its error, and the paired difference from one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reft_math.comparison import Run
from reft_math.errors import UserError
from reft_math.regression.metrics import Estimate, rmse_difference
from reft_math.scoring.records import RecordFile

Predictions = dict[str, tuple[float, float]]  # prediction and target by row

COLUMNS = (
    "run",
    "base",
    "tuned",
    "loss",
    "predictor",
    "parameters",
    "best step",
    "RMSE",
    "95 % interval",
    "difference",
    "95 % interval",
)


def comparison_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for every run of `train/raft.py`, with the names of `COLUMNS` and numbers as they are.

    ``difference`` is the run's RMSE less the first run's, over the same test rows.

    Raises:
        UserError: A folder is no such run, or two were not evaluated on the same rows.
    """
    first = _predictions(runs[0])
    rows = []
    for run in runs:
        own = _predictions(run)
        if own.keys() != first.keys():
            raise UserError(
                f"runs are compared on the same test rows; {run.folder} has {len(own)}, {runs[0].folder} {len(first)},"
                f" of which {len(own.keys() & first.keys())} are the same"
            )
        regressor, training = run.results["regressor"], run.results["training"]
        predictor = run.results["predictor"]
        estimate = run.results["evaluation"]["tuned"]["predictors"][predictor]["rmse"]
        difference = None if run is runs[0] else _difference(own, first)
        values = (
            run.folder.name,
            "random" if regressor["random_seed"] is not None else "pre-trained",
            regressor["tune"],
            regressor["loss"],
            predictor,
            training["trained_parameters"],
            training["best_step"],
            estimate["value"],
            estimate["interval_95"],
            None if difference is None else difference["value"],
            None if difference is None else difference["interval_95"],
        )
        rows.append(dict(zip(_NAMES, values, strict=True)))
    return rows


_NAMES = (*COLUMNS[:8], "interval", "difference", "difference_interval")


def cells(row: dict[str, Any]) -> list[str]:
    """A row as text, under `COLUMNS`."""
    return [_text(value) for value in row.values()]


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return f"{value[0]:.3f} - {value[1]:.3f}"
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _difference(own: Predictions, first: Predictions) -> Estimate:
    predictions, targets = zip(*(own[name] for name in first), strict=True)
    return rmse_difference(predictions, [prediction for prediction, _ in first.values()], targets)


def _predictions(run: Run) -> Predictions:
    """Prediction and target of every test row, by id."""
    if "predictor" not in run.results or "training" not in run.results:
        raise UserError(f"{run.folder} is no run of train/raft.py")
    predictor = run.results["predictor"]
    path = run.folder / "records" / "tuned.jsonl"
    records = RecordFile(path).done
    if not records:
        raise UserError(f"runs are compared row by row; {path} has no rows: was it moved away from its results?")
    return {name: (record["predictions"][predictor], record["target"]) for name, record in records.items()}
