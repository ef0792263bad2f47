"""Measure how likely texts are, token by token, under the base, the adapter always on, and the adapter under its gate,
and where their greedy answers diverge.

    uv run eval/trajectory.py --adapter results/prefix-reft/adapter --batch-size 100

The texts are the reference solutions and each decoder's own answers. Under the gate (``prefix``) a text has the
probability with which gated decoding would draw it, whoever wrote it: the gate's rule runs along that text and decides
which tokens are the intervened model's. Writes ``trajectory.csv`` (by position), ``totals.csv``, ``partings.csv``,
the figure (PNG and SVG), every record, and ``results.json``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from reft_math.commands.options.evaluation import RunOptions
from reft_math.commands.run import run
from reft_math.errors import UserError


@dataclass(frozen=True)
class TrajectoryOptions(RunOptions):
    dataset: str = field(default="arithmetic", metadata={"help": "Data set, or .json/.jsonl file."})
    limit: int | None = field(default=200, metadata={"help": "Use only the first N problems."})
    output_dir: str = field(default="results/trajectory", metadata={"help": "Everything goes here."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adapter is None:
            raise UserError("--adapter names whose answers to follow; pass a folder or hub id")


def main(options: TrajectoryOptions) -> None:
    from reft_math.experiments.trajectory import run_trajectory

    run_trajectory(options)


if __name__ == "__main__":
    run(main, TrajectoryOptions, __doc__)
