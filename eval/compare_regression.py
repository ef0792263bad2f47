"""Compare regression runs: a table with paired differences, mean ± sd over seeds, and figures.

    uv run eval/compare_regression.py --runs results/raft results/head --output-dir results/compare-regression

Runs that differ only in ``--seed`` are one setting, with mean and standard deviation of their RMSE. Among settings
that differ only in learning rates, validation rows choose one, marked with a star. Writes ``table.csv``, ``seeds.csv``,
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
        metadata={"help": "Output folders of train/raft.py; differences are taken against the first."},
    )
    any_template: bool = field(default=False, metadata={"help": "Also compare runs with different prompts."})
    output_dir: str = field(default="results/compare-regression", metadata={"help": "Table and figure go here."})
    resume: bool = field(default=False, metadata={"help": "Write table and figure again in the same folder."})
    overwrite: bool = field(default=False, metadata={"help": "Delete the run in the output folder and start over."})

    def __post_init__(self) -> None:
        require(self, "runs", lambda value: len(value) >= 1, "at least one output folder")
        require_one_process("a comparison")


def main(options: CompareRegressionOptions) -> None:
    from reft_math.regression.comparison import run_compare_regression

    run_compare_regression(options)


if __name__ == "__main__":
    run(main, CompareRegressionOptions, __doc__)
