"""Compares regression runs in tables and figures."""

from __future__ import annotations

from typing import Any

from reft_math.commands.output_folder import RESULTS_NAME, claim_output_dir
from reft_math.commands.provenance import provenance
from reft_math.files.atomic import write_csv, write_json
from reft_math.files.plots import write_figure
from reft_math.files.tables import print_table
from reft_math.regression.comparison import (
    COMPARISON_COLUMNS,
    SEED_COLUMNS,
    cells,
    changes,
    comparison_rows,
    over_seeds,
    seed_cells,
)
from reft_math.regression.convergence import convergence_figure, training_rows_figure
from reft_math.regression.distributions import distributions_figure
from reft_math.scoring.comparison import Run


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
