"""Plot the bias norm of training runs against optimiser steps (PNG and SVG).

uv run eval/norm_trace.py --runs results/projection results/loss-weight --output results/norm_trace
"""

from __future__ import annotations

from dataclasses import dataclass, field

from reft_math.command import run
from reft_math.errors import UserError, require


@dataclass(frozen=True)
class NormTraceOptions:
    runs: list[str] = field(default_factory=list, metadata={"help": "Output folders of train/prefix_reft.py."})
    output: str = field(default="results/norm_trace", metadata={"help": "Path of the figure, without its ending."})

    def __post_init__(self) -> None:
        require(self, "runs", lambda value: len(value) >= 1, "at least one output folder")


def main(options: NormTraceOptions) -> None:
    from pathlib import Path

    from reft_math.comparison import Run
    from reft_math.figures.norm_trace import norm_trace

    runs = [Run.read(folder) for folder in options.runs]
    for item in runs:
        if "bias_norm" not in item.results:
            raise UserError(f"{item.folder} held no bias norm; pass output folders of train/prefix_reft.py")
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    figure = norm_trace(runs)
    for ending in ("png", "svg"):
        figure.savefig(f"{options.output}.{ending}", dpi=150)
    print(f"figure: {options.output}.png, {options.output}.svg")


if __name__ == "__main__":
    run(main, NormTraceOptions, __doc__)
