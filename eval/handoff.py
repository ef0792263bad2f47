"""Measure accuracy against k when the first k tokens of an answer come from the base, the adapter always on, or the
adapter under its gate, and the base goes on alone.

    uv run eval/handoff.py --adapter results/prefix-reft/adapter --batch-size 100
    uv run eval/handoff.py --adapter results/prefix-reft/adapter --reft results/reft-free/adapter

Measured on all problems, on those that always-on gets wrong, and on those that the base gets wrong. Any decoder,
the base included, gains on problems chosen for another's mistakes. Writes ``handoff.csv``, the figure (PNG and SVG),
every record, and ``results.json``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from reft_math.commands.options.evaluation import RunOptions
from reft_math.commands.run import run
from reft_math.errors import UserError


@dataclass(frozen=True)
class HandoffOptions(RunOptions):
    dataset: str = field(default="arithmetic", metadata={"help": "Data set, or .json/.jsonl file."})
    reft: str | None = field(
        default=None,
        metadata={"help": "Another adapter for always_on, such as ordinary ReFT: folder or hub id (the same adapter)."},
    )
    limit: int | None = field(default=200, metadata={"help": "Use only the first N problems."})
    output_dir: str = field(default="results/handoff", metadata={"help": "Everything goes here."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adapter is None:
            raise UserError("--adapter names whose first tokens to hand over; pass a folder or hub id")


def main(options: HandoffOptions) -> None:
    from reft_math.experiments.handoff import run_handoff

    run_handoff(options)


if __name__ == "__main__":
    run(main, HandoffOptions, __doc__)
