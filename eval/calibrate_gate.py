"""Choose an adapter's gate by accuracy on the validation split.

    uv run eval/calibrate_gate.py --adapter results/prefix-reft/adapter
    uv run eval/calibrate_gate.py --adapter results/prefix-reft/adapter --gates tokens:1 tokens:2 tokens:4 tokens:8

Prints accuracy against the gate and chooses the most accurate gate; among tied gates the last wins. ``--save`` makes
it the default in the adapter's ``reft_config.json``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from reft_math.commands.options.evaluation import RunOptions
from reft_math.commands.run import run
from reft_math.errors import UserError


@dataclass(frozen=True)
class CalibrationOptions(RunOptions):
    FREE_ON_RESUME: ClassVar[frozenset[str]] = RunOptions.FREE_ON_RESUME | {"save", "gate"}

    dataset: str = field(
        default="arithmetic", metadata={"help": "Data set, or .json/.jsonl file, with a validation split."}
    )
    gates: list[str] | None = field(
        default=None, metadata={"help": "Candidates, in order of closing (kl:0.25,min=1 to kl:16,min=1, doubling)."}
    )
    limit: int | None = field(default=200, metadata={"help": "Maximum number of validation problems."})
    output_dir: str = field(default="results/calibration", metadata={"help": "Records and results go here."})
    save: bool = field(default=False, metadata={"help": "Write the choice into the adapter's folder."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adapter is None:
            raise UserError("--adapter names whose gate to choose; pass a folder or hub id")


def main(options: CalibrationOptions) -> None:
    if options.gate is not None:
        raise UserError("--gates names the candidates; leave --gate out")
    from reft_math.experiments.calibration import run_calibration

    run_calibration(options, options.dataset, options.gates, options.save)


if __name__ == "__main__":
    run(main, CalibrationOptions, __doc__)
