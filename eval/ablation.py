"""Train with and without truncation and norm control, decode with and without the gate: all eight combinations.

    uv run eval/ablation.py --seeds 3

*Truncation*: training on the first K tokens of solutions, or on whole ones. *Norm control*: the bias norm held at its
target, or free. *Gate*: decoding under the gate chosen on validation problems, or always on. Trials are in ``trials/``,
with adapter, records and results; the options are those of `train/prefix_reft.py`. Writes ``cells.csv``,
``effects.csv`` (the effect of each of the three, paired by seed and problem), ``trials.csv``, the figure (PNG and
SVG) and ``results.json``. ``--resume`` runs missing trials; ``--seeds`` may grow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from reft_math.commands.options.prefix import PrefixOptions
from reft_math.commands.run import run
from reft_math.errors import UserError, require


@dataclass(frozen=True)
class AblationOptions(PrefixOptions):
    FREE_ON_RESUME: ClassVar[frozenset[str]] = PrefixOptions.FREE_ON_RESUME | {"seeds"}

    output_dir: str = field(default="results/ablation", metadata={"help": "Everything goes here."})
    target_norm: float = field(
        default=0.54, metadata={"help": "Set point of the bias norm (mean over layers of ‖b‖₂)."}
    )
    seeds: int = field(default=3, metadata={"help": "Number of runs of each kind, with consecutive seeds from --seed."})

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "seeds", lambda value: value >= 1, "at least 1")
        require(self, "target_norm", lambda value: 0 < value < math.inf, "positive")
        if self.norm_control == "none":
            raise UserError(
                "norm control is switched on and off here; --norm-control names the one that is on, not none"
            )
        if self.full_fraction:
            raise UserError("truncation is switched on and off here; leave --full-fraction out")
        if self.gate in ("always", "off", "prompt") or (self.gate is None and not self.calibrate_gate):
            raise UserError("the gate is put beside always on; name another with --gate, or let it be calibrated")


def main(options: AblationOptions) -> None:
    from reft_math.experiments.sweeps import run_ablation

    run_ablation(options, options.target_norm, options.seeds)


if __name__ == "__main__":
    run(main, AblationOptions, __doc__)
