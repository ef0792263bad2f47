"""Compares regression runs: their settings, errors, and the paired difference from one of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from reft_math.commands.output_folder import RESULTS_NAME, claim_output_dir
from reft_math.commands.provenance import provenance
from reft_math.errors import UserError
from reft_math.files.atomic import write_csv, write_json
from reft_math.files.plots import write_figure
from reft_math.files.records import RecordFile
from reft_math.files.tables import print_table
from reft_math.regression.convergence import convergence_figure, training_rows_figure
from reft_math.regression.distributions import distributions_figure
from reft_math.regression.metrics import Estimate, rmse_difference
from reft_math.scoring.comparison import Record, Run
from reft_math.scoring.pairing import check_templates

Predictions = dict[str, tuple[float, float, str]]  # prediction, target and text by row

COMPARISON_COLUMNS = (
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


SEED_COLUMNS = (
    "loss",
    "tuned",
    "base",
    "rows",
    "lr",
    "head lr",
    "runs",
    "validation",
    "RMSE",
    "sd",
    "best step",
    "chosen",
)
_RATES = ("learning_rate", "head_learning_rate")


def comparison_rows(runs: Sequence[Run], any_template: bool = False) -> list[dict[str, Any]]:
    """Returns a row for every run of `train/raft.py`, with the names of `COMPARISON_COLUMNS` and unformatted numbers.

    ``difference`` is the run's RMSE minus the first run's, over the same test rows.

    Args:
        runs: At least one.
        any_template: Allow different prompts, in the frame and in the wording of the texts.

    Raises:
        UserError: A folder is not such a run, or two were evaluated on different rows or with different prompts.
    """
    first = _predictions(runs[0])
    check_templates({str(run.folder): _template(run) for run in runs}, any_template)
    return [_row(run, None if run is runs[0] else runs[0], first, any_template) for run in runs]


def _template(run: Run) -> str | None:
    """Returns the prompts' template; None if the results lack it."""
    template: str | None = run.results["regressor"].get("template")
    return template


def _row(run: Run, other: Run | None, first: Predictions, any_template: bool) -> dict[str, Any]:
    """Returns a run's row; ``first`` are the predictions of the first run, which is ``other`` or this one."""
    own = _predictions(run)
    if other is not None and own.keys() != first.keys():
        raise UserError(
            f"runs are compared on the same test rows; {run.folder} has {len(own)}, {other.folder} {len(first)},"
            f" of which {len(own.keys() & first.keys())} are the same"
        )
    same = slice(1, 2 if any_template else 3)
    odd = next((name for name, row in own.items() if other is not None and row[same] != first[name][same]), None)
    if other is not None and odd is not None:
        raise UserError(
            f"runs are compared on the same test rows; {run.folder} and {other.folder} differ in {odd}'s text or"
            " target: are these different versions of the data set?"
        )
    difference = {"value": None, "interval_95": None} if other is None else _difference(own, first)
    return dict(zip(_NAMES, (*_told(run), *difference.values()), strict=True))


def over_seeds(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Returns a row, with the names of `SEED_COLUMNS`, for every setting whose runs differ only in their seed.

    ``validation`` and ``RMSE`` (on the test rows) are means over these runs, ``sd`` is the latter's standard deviation
    over them (n − 1; None for one). ``chosen`` is the setting with the least ``validation`` of those ``alike``, which
    differ in their learning rates alone; a ``curve``'s differ in these and in the number of training rows.

    Args:
        runs: As `comparison_rows` has checked them.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_setting(run), []).append(run)
    rows = [
        {
            **_over_seeds(members),
            "alike": _setting(members[0], *_RATES),
            "curve": _setting(members[0], *_RATES, "train_size"),
        }
        for members in groups.values()
    ]
    for row in rows:
        row["chosen"] = row["validation"] == min(
            other["validation"] for other in rows if other["alike"] == row["alike"]
        )
    return rows


def _setting(run: Run, *but: str) -> str:
    """Returns a run's settings without its seed, its folder and those named."""
    config = run.results.get("config")
    if config is None:  # from a version that wrote no config
        return str(run.folder)
    left_out = {"seed", "output_dir", "resume", "overwrite", "dry_run", *but}
    return json.dumps({name: value for name, value in config.items() if name not in left_out}, sort_keys=True)


def _over_seeds(runs: Sequence[Run]) -> dict[str, Any]:
    told = [dict(zip(_NAMES, _told(run), strict=False)) for run in runs]
    results, config = runs[0].results, runs[0].results.get("config") or {}
    courses = [run.results["training"] for run in runs]
    validation = [dict(zip(one["steps"], one["rmse"], strict=True))[one["best_step"]] for one in courses]
    errors = [row["RMSE"] for row in told]
    return {
        **{name: told[0][name] for name in ("loss", "tuned", "base")},
        "rows": results.get("rows", {}).get("train"),
        "lr": config.get("learning_rate"),
        "head lr": config.get("head_learning_rate"),
        "runs": len(runs),
        "validation": statistics.fmean(validation),
        "RMSE": statistics.fmean(errors),
        "sd": statistics.stdev(errors) if len(runs) > 1 else None,
        "best step": statistics.fmean(row["best step"] for row in told),
    }


def _told(run: Run) -> tuple[Any, ...]:
    """Returns the results' values for `_NAMES`."""
    regressor, training, predictor = (run.results[name] for name in ("regressor", "training", "predictor"))
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


_NAMES = (*COMPARISON_COLUMNS[:8], "interval", "difference", "difference_interval")


def cells(row: dict[str, Any]) -> list[str]:
    """Returns a row as text, under `COMPARISON_COLUMNS`."""
    return [_text(value) for value in row.values()]


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return f"{value[0]:.3f} - {value[1]:.3f}"
    if isinstance(value, bool):
        return "*" if value else ""
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def seed_cells(row: Mapping[str, Any]) -> list[str]:
    """Returns a row of `over_seeds` as text, under `SEED_COLUMNS`."""
    rates = {name: "-" if row[name] is None else f"{row[name]:g}" for name in ("lr", "head lr")}
    return [rates.get(name) or _text(row[name]) for name in SEED_COLUMNS]


def _difference(own: Predictions, first: Predictions) -> Estimate:
    predictions, targets, _ = zip(*(own[name] for name in first), strict=True)
    return rmse_difference(predictions, [prediction for prediction, _, _ in first.values()], targets)


def changes(run: Run) -> list[tuple[Record, Record]]:
    """Returns records of every test row before and after training; empty if the run has no entropies over a grid."""
    before, after = (RecordFile(run.folder / "records" / f"{name}.jsonl").done for name in ("start", "tuned"))
    pairs = [(before[name], after[name]) for name in before if name in after]
    return [pair for pair in pairs if all(isinstance(record.get("entropy"), float) for record in pair)]


def _predictions(run: Run) -> Predictions:
    """Returns prediction, target and text of every test row, by id."""
    if "predictor" not in run.results or "training" not in run.results:
        raise UserError(f"{run.folder} is no run of train/raft.py")
    predictor = run.results["predictor"]
    path = run.folder / "records" / "tuned.jsonl"
    records = RecordFile(path).done
    if not records:
        raise UserError(f"runs are compared row by row; {path} has no rows: was it moved away from its results?")
    return {
        name: (record["predictions"][predictor], record["target"], record["text"]) for name, record in records.items()
    }


def run_compare_regression(options: Any) -> None:
    """Compares regression runs in tables and figures, with the options of ``eval/compare_regression.py``."""
    runs = [Run.read(folder) for folder in options.runs]
    rows = comparison_rows(runs, options.any_template)
    settings = over_seeds(runs)
    seeds = [{name: row[name] for name in SEED_COLUMNS} for row in settings]
    figures = {"convergence": convergence_figure(runs)}
    if changed := [(run, pairs) for run in runs if (pairs := changes(run))]:
        figures["distributions"] = distributions_figure(changed)
    if len({row["rows"] for row in seeds} - {None}) > 1:
        figures["training_rows"] = training_rows_figure(settings)
    folder = claim_output_dir(options)
    write_csv(folder / "table.csv", rows)
    write_csv(folder / "seeds.csv", seeds)
    tables = {
        f"differences against {runs[0].folder}": [COMPARISON_COLUMNS, *map(cells, rows)],
        "mean and sd over seeds; * has the learning rates that validation rows choose": [
            SEED_COLUMNS,
            *map(seed_cells, seeds),
        ],
    }
    for name, figure in figures.items():
        write_figure(folder, name, figure)
    write_json(folder / RESULTS_NAME, {**provenance(options), "comparison": rows, "seeds": seeds})
    for title, (columns, *lines) in tables.items():
        print_table(title, columns, lines)
    print(f"tables and figures: {folder}")
