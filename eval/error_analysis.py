"""Measure errors of calculation: where wrong solutions first go wrong, and where in a solution equations are false.

    uv run eval/error_analysis.py --runs results/prefix-reft
    uv run eval/error_analysis.py --runs results/gsm8k elsewhere.jsonl --output-dir results/errors-gsm8k

Counts for every decoder the wrong solutions whose first error is a false equation (``47+38=75``) or a given of the
question copied wrongly; those with true equations and right givens, whose plan was wrong; and those with no readable
equation, or no answer. Equations are checked in exact arithmetic; `reft_math.probes.equations` defines what they may
round, `reft_math.probes.solution_errors` what counts as copied wrongly. Token counts are estimated from characters, as
if all tokens had equal length. Writes a figure (PNG and SVG), ``results.json``, ``records/errors.jsonl`` (every wrong
solution with its errors) and

- ``errors.csv``: by run, decoder and kind of error, its share of wrong solutions and the first one's median position;
- ``equations.csv``: the share of false ones among all equations, right solutions or wrong, its 95 % interval by
  resampled problems, its difference from the first decoder's on the problems of both, and how many results are a power
  of ten too large (``ten_times``) or too small (``tenth``);
- ``positions.csv``: number of false equations by quarter of a solution, right or wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from reft_math.commands.run import run
from reft_math.errors import require, require_different, require_one_process


@dataclass(frozen=True)
class ErrorAnalysisOptions:
    runs: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Output folders of training and evaluation commands, and .jsonl or .json files of completions made"
            " elsewhere."
        },
    )
    output_dir: str = field(default="results/error_analysis", metadata={"help": "Tables and figure go here."})
    resume: bool = field(default=False, metadata={"help": "Write tables and figure again in the same folder."})
    overwrite: bool = field(default=False, metadata={"help": "Delete the run in the output folder and start over."})

    def __post_init__(self) -> None:
        require(self, "runs", lambda value: len(value) >= 1, "at least one output folder or file")
        require_different(self.runs)
        require_one_process("an analysis of errors")


def main(options: ErrorAnalysisOptions) -> None:
    from reft_math.experiments.error_analysis import run_error_analysis

    run_error_analysis(options, options.runs)


if __name__ == "__main__":
    run(main, ErrorAnalysisOptions, __doc__)
