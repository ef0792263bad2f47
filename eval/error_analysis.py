"""Share of errors by calculation: where wrong solutions first go wrong, and where in a solution equations are false.

    uv run eval/error_analysis.py --runs results/prefix-reft
    uv run eval/error_analysis.py --runs results/gsm8k elsewhere.jsonl --output-dir results/errors-gsm8k

Of every decoder's wrong solutions: how many go wrong first by a false equation (``47+38=75``) or by a given of the
question copied wrongly; in how many equations are true and givens right, so that the plan was wrong; and how many hold
no equation that can be read, or no answer. Equations are checked in exact arithmetic; what they may round and what
counts as copied wrongly: `reft_math.probes.equations` and `reft_math.probes.solution_errors`. Tokens are counted from
characters, as if all were of a length. Writes a figure (PNG and SVG), ``results.json``, ``records/errors.jsonl`` (every
wrong solution with what is wrong) and

- ``errors.csv``: by run, decoder and kind of error, its share of the wrong solutions and the median place of the first;
- ``positions.csv``: by quarter of a solution, right or wrong, how many of its equations are false.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from reft_math.commands.run import run
from reft_math.errors import require, require_different, require_one_process, require_there


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
    resume: bool = field(default=False, metadata={"help": "Write tables and figure again where they are."})
    overwrite: bool = field(default=False, metadata={"help": "Delete the output folder's run and start anew."})

    def __post_init__(self) -> None:
        require(self, "runs", lambda value: len(value) >= 1, "at least one output folder or file")
        require_different(self.runs)
        require_there(self, "runs")
        require_one_process("an analysis of errors")


def main(options: ErrorAnalysisOptions) -> None:
    from reft_math.experiments.error_analysis import run_error_analysis

    run_error_analysis(options, options.runs)


if __name__ == "__main__":
    run(main, ErrorAnalysisOptions, __doc__)
