"""The main table: what runs were trained on, their accuracy, and the exact McNemar test against the first.

    uv run eval/compare.py --runs results/prefix-reft results/lora
    uv run eval/compare.py --runs results/prefix-reft results/lora --against results/lora:lora
    uv run eval/compare.py --runs results/gsm8k elsewhere.jsonl --first-turn --output-dir results/compare-elsewhere

``data_num`` counts training problems, ``prefix`` the solution tokens trained on, ``tracking`` is the bias norm's error
against its target, ``strict`` counts stated answers, ``flexible`` last numbers, ``p`` is McNemar's, ``only first`` and
``only this`` count the problems that one alone solved. Tokens an answer, and how many more or less than the first's to
the same problems (``against first``), have 95 % intervals bootstrapped over problems.

Runs over different problems, or with different prompt templates, are refused unless ``--shared-only`` or
``--any-template`` says that it is meant.

Completions made elsewhere, rows of {"question", "gold", "completion"}, are scored as our own are. Those that repeat
their prompt or go on with further turns are counted; ``--first-turn`` scores their first answer alone. Problems are
paired by question, and where a data set asks one twice in its order. Writes ``comparison.csv``, the
figure (PNG and SVG), outcomes by problem and the scores of completions made elsewhere (``records/``), and
``results.json``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from reft_math.commands.run import run
from reft_math.errors import require, require_different, require_one_process, require_there


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
            "help": "RUN:DECODER, one of the runs, that p-values are against; a file's decoder is elsewhere (the first"
            " run's first)."
        },
    )
    shared_only: bool = field(default=False, metadata={"help": "Compare on the problems that all runs have."})
    any_template: bool = field(default=False, metadata={"help": "Compare runs with different prompts, too."})
    scoring: Literal["auto", "numeric", "math"] = field(
        default="auto",
        metadata={
            "help": "How completions made elsewhere are scored: auto is as the folders are, and without folders as"
            " numbers where every gold is one."
        },
    )
    first_turn: bool = field(
        default=False,
        metadata={
            "help": "Score the first answer only of completions made elsewhere that repeat their prompt or run on."
        },
    )
    output_dir: str = field(default="results/compare", metadata={"help": "Table, figure and outcomes go here."})
    resume: bool = field(default=False, metadata={"help": "Write table and figure again where they are."})
    overwrite: bool = field(default=False, metadata={"help": "Delete the output folder's run and start anew."})

    def __post_init__(self) -> None:
        require(self, "runs", lambda value: len(value) >= 1, "at least one output folder or file")
        require_different(self.runs)
        require_there(self, "runs")
        require_one_process("a comparison")


def main(options: CompareOptions) -> None:
    from reft_math.experiments.compare import run_compare

    run_compare(options)


if __name__ == "__main__":
    run(main, CompareOptions, __doc__)
