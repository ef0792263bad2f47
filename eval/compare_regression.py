"""Put regression runs side by side: a table with paired differences, mean ± sd over seeds, and figures.

    uv run eval/compare_regression.py --runs results/raft results/head --output-dir results/compare-regression

Runs that differ in ``--seed`` alone are one setting, with mean and standard deviation of their RMSE. Of settings that
differ in learning rates alone, validation rows choose one, which gets a star. Writes ``table.csv``, ``seeds.csv``,
``results.json`` and, as PNG and SVG, ``convergence`` (by step), ``distributions`` (the grid's entropy and
probabilities before and after) and, for runs over several numbers of training rows, ``training_rows``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from reft_math.commands.run import run
from reft_math.errors import require, require_one_process


@dataclass(frozen=True)
class CompareRegressionOptions:
    runs: list[str] = field(
        default_factory=list,
        metadata={"help": "Output folders of train/raft.py; differences are against the first."},
    )
    any_template: bool = field(default=False, metadata={"help": "Compare runs with different prompts, too."})
    output_dir: str = field(default="results/compare-regression", metadata={"help": "Table and figure go here."})
    resume: bool = field(default=False, metadata={"help": "Write table and figure again where they are."})
    overwrite: bool = field(default=False, metadata={"help": "Delete the output folder's run and start anew."})

    def __post_init__(self) -> None:
        require(self, "runs", lambda value: len(value) >= 1, "at least one output folder")
        require_one_process("a comparison")


def main(options: CompareRegressionOptions) -> None:
    from reft_math.commands.output_folder import RESULTS_NAME, claim_output_dir
    from reft_math.commands.provenance import provenance
    from reft_math.files.atomic import write_csv, write_json
    from reft_math.files.plots import write_figure
    from reft_math.files.tables import print_table
    from reft_math.regression.comparison import (
        COLUMNS,
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
        f"differences against {runs[0].folder}": [COLUMNS, *map(cells, rows)],
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


if __name__ == "__main__":
    run(main, CompareRegressionOptions, __doc__)
