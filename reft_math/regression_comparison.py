"""Regression runs side by side: what each was, its error, and the paired difference from one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reft_math.command import FORM_ERRORS, bad_form
from reft_math.comparison import NAME, Run
from reft_math.errors import UserError
from reft_math.pairing import check_templates
from reft_math.regression.metrics import Estimate, rmse_difference
from reft_math.scoring.records import RecordFile

Predictions = dict[str, tuple[float, float, str]]  # prediction, target and text by row

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


def comparison_rows(runs: Sequence[Run], any_template: bool = False) -> list[dict[str, Any]]:
    """A row for every run of `train/raft.py`, with the names of `COLUMNS` and numbers as they are.

    ``difference`` is the run's RMSE less the first run's, over the same test rows.

    Args:
        runs: At least one.
        any_template: Their prompts may differ.

    Raises:
        UserError: A folder is no such run, its files were edited, or two were not evaluated on the same rows or not
            with the same prompts.
    """
    first = _predictions(runs[0])
    check_templates({str(run.folder): _template(run) for run in runs}, any_template)
    return [_row(run, None if run is runs[0] else runs[0], first) for run in runs]


def _template(run: Run) -> str | None:
    """The prompts'; None where the results do not say it."""
    try:
        template = run.results["regressor"].get("template")
    except FORM_ERRORS as error:
        raise bad_form(run.folder, error) from None
    return None if template is None else str(template)


def _row(run: Run, other: Run | None, first: Predictions) -> dict[str, Any]:
    """A run's row; ``first`` are the first run's predictions, which is ``other`` or this one."""
    own = _predictions(run)
    if other is not None and own.keys() != first.keys():
        raise UserError(
            f"runs are compared on the same test rows; {run.folder} has {len(own)}, {other.folder} {len(first)},"
            f" of which {len(own.keys() & first.keys())} are the same"
        )
    odd = next((name for name, row in own.items() if row[1:] != first[name][1:]), None)
    if other is not None and odd is not None:
        raise UserError(
            f"runs are compared on the same test rows; {run.folder} and {other.folder} differ in {odd}'s text or"
            " target: are these different versions of the data set?"
        )
    difference = None if other is None else _difference(own, first)
    try:
        row = dict(
            zip(_NAMES, (*_told(run), *(difference or {"value": None, "interval_95": None}).values()), strict=True)
        )
        cells(row)
        _check_course(run.results)
    except FORM_ERRORS as error:
        raise bad_form(run.folder, error) from None
    return row


def _check_course(results: Mapping[str, Any]) -> None:
    """Raises a `TypeError` or `ValueError` where there is nothing to draw a run's convergence by."""
    training, constant = results["training"], results["rmse_of_training_mean"]
    for step, error in zip(training["steps"], training["rmse"], strict=True):
        if not all(isinstance(number, int | float) for number in (step, error, constant)):
            raise TypeError(f"RMSE {error!r} of {constant!r} at step {step!r}")


def _told(run: Run) -> tuple[Any, ...]:
    """What the results say of the run, as `_NAMES` has it."""
    regressor, training, predictor = (run.results[name] for name in ("regressor", "training", "predictor"))
    for name in (regressor["tune"], regressor["loss"], predictor):
        if not NAME.fullmatch(name):
            raise ValueError(f"no plain name: {name!r:.60}")
    estimate = run.results["evaluation"]["tuned"]["predictors"][predictor]["rmse"]
    return (
        run.folder.name,
        "random" if regressor["random_seed"] is not None else "pre-trained",
        regressor["tune"],
        regressor["loss"],
        predictor,
        training["trained_parameters"],
        training["best_step"],
        estimate["value"],
        estimate["interval_95"],
    )


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
    predictions, targets, _ = zip(*(own[name] for name in first), strict=True)
    return rmse_difference(predictions, [prediction for prediction, _, _ in first.values()], targets)


def _predictions(run: Run) -> Predictions:
    """Prediction, target and text of every test row, by id."""
    if "predictor" not in run.results or "training" not in run.results:
        raise UserError(f"{run.folder} is no run of train/raft.py")
    predictor = run.results["predictor"]
    path = run.folder / "records" / "tuned.jsonl"
    records = RecordFile(path).done
    if not records:
        raise UserError(f"runs are compared row by row; {path} has no rows: was it moved away from its results?")
    try:
        return {
            name: (float(record["predictions"][predictor]), float(record["target"]), str(record["text"]))
            for name, record in records.items()
        }
    except FORM_ERRORS as error:
        raise UserError(f"{path} has not the form that its command writes ({error!r}); leave its run out") from None
