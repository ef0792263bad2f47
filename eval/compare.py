"""The main table: what runs were trained on, their accuracy, and the exact McNemar test against the first.

    uv run eval/compare.py --runs results/prefix-reft results/lora
    uv run eval/compare.py --runs results/prefix-reft results/lora --against results/lora:lora
    uv run eval/compare.py --runs results/gsm8k elsewhere.jsonl --output-dir results/compare-elsewhere

Completions made elsewhere, rows of {"question", "gold", "completion"}, are scored as our own are. Problems are paired by
question. Writes ``comparison.csv``, ``comparison.md``, the figure (PNG and SVG), outcomes by problem and the scores of
completions made elsewhere (``records/``), and ``results.json``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from reft_math.command import run
from reft_math.errors import UserError, require


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
    scoring: Literal["auto", "numeric", "math"] = field(
        default="auto",
        metadata={
            "help": "How completions made elsewhere are scored: auto is as the folders are, and without folders as"
            " numbers where every gold is one."
        },
    )
    output_dir: str = field(default="results/compare", metadata={"help": "Table, figure and outcomes go here."})
    resume: bool = field(default=False, metadata={"help": "Write table and figure again where they are."})
    overwrite: bool = field(default=False, metadata={"help": "Delete the output folder's run and start anew."})

    def __post_init__(self) -> None:
        require(self, "runs", lambda value: len(value) >= 1, "at least one output folder or file")
        if len({Path(name).resolve() for name in self.runs}) < len(self.runs):
            raise UserError(f"--runs must be different runs; got {' '.join(self.runs)}")


def main(options: CompareOptions) -> None:
    from reft_math.command import RESULTS_NAME, claim_output_dir, print_table, provenance
    from reft_math.command import write_csv, write_json, write_text
    from reft_math.comparison import COLUMNS, TRAINING_COLUMNS, cells, comparison_rows, paired
    from reft_math.evaluation import Scorer
    from reft_math.figures.comparison import comparison_figure
    from reft_math.generations import read_entries, rescored, 
    from reft_math.markdown import markdown


if __name__ == "__main__":
    run(main, CompareOptions, __doc__)
