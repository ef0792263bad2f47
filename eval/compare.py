"""Make the main table: the runs' training data, their accuracy, and the exact McNemar test against the first.

    uv run eval/compare.py --runs results/prefix-reft results/lora
    uv run eval/compare.py --runs results/prefix-reft results/lora --against results/lora:lora
    uv run eval/compare.py --runs results/gsm8k elsewhere.jsonl --first-turn --output-dir results/compare-elsewhere

``data_num`` counts training problems, ``prefix`` the solution tokens trained on; ``tracking`` is the bias norm's error
against its target; ``strict`` counts stated answers, ``flexible`` last numbers; ``p`` is McNemar's; ``only first`` and
``only this`` count problems that only one of the two solved. Tokens per answer, and their difference from the first
run's on the same problems (``against first``), have 95 % intervals bootstrapped over problems.

Runs over different problems need ``--shared-only``, runs with different prompt templates ``--any-template``.

Completions made elsewhere, rows of {"question", "gold", "completion"}, are scored like our own. Those that repeat
their prompt or go on with further turns are counted; ``--first-turn`` scores only their first answer. Problems are
paired by question, repeated questions also by their order. Writes ``comparison.csv``, the figure (PNG and SVG),
outcomes by problem and the scores of completions made elsewhere (``records/``), and ``results.json``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from reft_math.commands.run import run
from reft_math.errors import require, require_different, require_one_process


@dataclass(frozen=True)
class CompareOptions:
    runs: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Output folders of training and evaluation commands, and .jsonl or .json files of completions made"
            " elsewhere."
        },
    )
    against: str | None = field(
        default=None,
        metadata={
            "help": "Row to compute p-values against, as RUN:ROW; rows are those of the run's own table (base, prefix,"
            " lora), a file's is elsewhere (the first row of the first run)."
        },
    )
    shared_only: bool = field(default=False, metadata={"help": "Compare on the problems that all runs share."})
    any_template: bool = field(default=False, metadata={"help": "Also compare runs with different prompts."})
    scoring: Literal["auto", "numeric", "math"] = field(
        default="auto",
        metadata={
            "help": "Scoring of completions made elsewhere: auto scores like the folders, or without folders as"
            " numbers if every gold answer is one."
        },
    )
    first_turn: bool = field(
        default=False,
        metadata={
            "help": "Score only the first answer of completions made elsewhere that repeat their prompt or run on."
        },
    )
    output_dir: str = field(default="results/compare", metadata={"help": "Table, figure and outcomes go here."})
    resume: bool = field(default=False, metadata={"help": "Write table and figure again in the same folder."})
    overwrite: bool = field(default=False, metadata={"help": "Delete the run in the output folder and start over."})

    def __post_init__(self) -> None:
        require(self, "runs", lambda value: len(value) >= 1, "at least one output folder or file")
        require_different(self.runs)
        require_one_process("a comparison")


def main(options: CompareOptions) -> None:
    from reft_math.experiments.compare import run_compare

    run_compare(options)


if __name__ == "__main__":
    run(main, CompareOptions, __doc__)
