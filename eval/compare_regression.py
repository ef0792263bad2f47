"""Put regression runs side by side: a table with paired differences, and how fast each converged.

    uv run eval/compare_regression.py --runs results/raft results/head --output-dir results/compare-regression

Writes ``table.csv``, ``table.md``, the figure ``convergence`` (PNG and SVG) and ``results.json``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from reft_math.command import run
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
    from reft_math.command import RESULTS_NAME, claim_output_dir, print_table, provenance
    from reft_math.comparison import Run
    from reft_math.figures.convergence import convergence_figure
    from reft_math.files import write_csv, write_figure, write_json, write_text
    from reft_math.markdown import markdown
    from reft_math.regression_comparison import COLUMNS, cells, comparison_rows

    runs = [Run.read(folder) for folder in options.runs]
    rows = comparison_rows(runs, options.any_template)
    figure = convergence_figure(runs)
    folder = claim_output_dir(options)
    write_csv(folder / "table.csv", rows)
    title = f"differences against {runs[0].folder}"
    write_text(folder / "table.md", markdown({title: [COLUMNS, *map(cells, rows)]}))
    write_figure(folder, "convergence", figure)
    write_json(folder / RESULTS_NAME, {**provenance(options), "comparison": rows})
    print_table(title, COLUMNS, [cells(row) for row in rows])
    print(f"table and figure: {folder}")


if __name__ == "__main__":
    run(main, CompareRegressionOptions, __doc__)
