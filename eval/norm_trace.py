"""Plot the bias norm of training runs against optimiser steps.

    uv run eval/norm_trace.py --runs results/pid results/note --output-dir results/norm_trace

Writes ``norm_trace.csv``, and the figure (PNG and SVG) and ``results.json`` with overshoot, settling step and
steady-state error (`reft_math.training.tracking`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from reft_math.commands.run import run
from reft_math.errors import require, require_different, require_one_process


@dataclass(frozen=True)
class NormTraceOptions:
    runs: list[str] = field(default_factory=list, metadata={"help": "Output folders of train/prefix_reft.py."})
    output_dir: str = field(default="results/norm_trace", metadata={"help": "Table and figure go here."})
    resume: bool = field(default=False, metadata={"help": "Write table and figure again in the same folder."})
    overwrite: bool = field(default=False, metadata={"help": "Delete the run in the output folder and start over."})

    def __post_init__(self) -> None:
        require(self, "runs", lambda value: len(value) >= 1, "at least one output folder")
        require_different(self.runs)
        require_one_process("a figure")


def main(options: NormTraceOptions) -> None:
    from reft_math.experiments.norm_trace import run_norm_trace

    run_norm_trace(options)


if __name__ == "__main__":
    run(main, NormTraceOptions, __doc__)
