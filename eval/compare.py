"""Put runs side by side: settings, bias norm, accuracy, and the exact McNemar test against one decoder.

uv run eval/compare.py --runs results/prefix-reft results/lora
uv run eval/compare.py --runs results/prefix-reft results/lora --against results/lora:lora
"""

from __future__ import annotations

from dataclasses import dataclass, field

from reft_math.command import run
from reft_math.errors import require


@dataclass(frozen=True)
class CompareOptions:
    runs: list[str] = field(
        default_factory=list, metadata={"help": "Output folders of training and evaluation commands."}
    )
    against: str | None = field(
        default=None, metadata={"help": "FOLDER:DECODER that p-values are against (the first run's base)."}
    )

    def __post_init__(self) -> None:
        require(self, "runs", lambda value: len(value) >= 1, "at least one output folder")


def main(options: CompareOptions) -> None:
    from reft_math.command import print_table
    from reft_math.comparison import COLUMNS, Run, comparison_rows

    runs = [Run.read(folder) for folder in options.runs]
    folder, _, decoder = (options.against or f"{options.runs[0]}:base").rpartition(":")
    rows = comparison_rows(runs, Run.read(folder).correct(decoder))
    print_table(f"p against {folder}:{decoder}", COLUMNS, rows)


if __name__ == "__main__":
    run(main, CompareOptions, __doc__)
