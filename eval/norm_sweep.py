"""Train at several target norms, choose one on validation problems, report it on test problems.

    uv run eval/norm_sweep.py --target-norms 0.27 0.54 1.08 --seeds 3 --project-number-direction

Each norm and seed is a trial in ``trials/``, with adapter, records and results; the options are those of
`train/prefix_reft.py`. Writes ``trials.csv``, ``norms.csv`` (accuracy against the achieved norm, always on and gated;
the norm best on validation problems is ``chosen``, the smallest of the ``tied``, ``at_edge`` if it ends the grid;
intervals are ``over`` problems, and over seeds if there are several), ``shares.csv`` (|cosine| of biases, and of the
changes they make, with the number direction, beside ``chance``), the figure (PNG and SVG) and ``results.json``.
``--project-number-direction`` adds a curve of biases kept off their layer's number direction, ``--bias-alone`` one of
biases without scales. ``--resume`` runs missing trials; norms, seeds and the bias alone may be added.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from reft_math.commands.options.prefix import PrefixOptions, check_number_direction
from reft_math.commands.run import run
from reft_math.errors import UserError, require

NORMS = (0.14, 0.27, 0.54, 1.08, 2.16, 4.32)


@dataclass(frozen=True)
class NormSweepOptions(PrefixOptions):
    FREE_ON_RESUME: ClassVar[frozenset[str]] = PrefixOptions.FREE_ON_RESUME | {*("target_norms", "seeds", "bias_alone")}

    output_dir: str = field(default="results/norm_sweep", metadata={"help": "Everything goes here."})
    target_norms: list[float] = field(
        default_factory=lambda: list(NORMS), metadata={"help": "Set points of the bias norm (0.14 to 4.32)."}
    )
    seeds: int = field(default=3, metadata={"help": "Number of runs at each norm, with consecutive seeds from --seed."})
    project_number_direction: bool = field(
        default=False, metadata={"help": "Add a curve with biases kept off the number direction (RED, bias)."}
    )

    bias_alone: bool = field(default=False, metadata={"help": "Add a curve of the bias alone beside RED's."})

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "seeds", lambda value: value >= 1, "at least 1")
        require(
            self,
            "target_norms",
            lambda value: value and all(0 < norm < math.inf for norm in value) and len(set(value)) == len(value),
            "positive, and each once",
        )
        check_number_direction(self, self.project_number_direction)
        if self.norm_control == "none":
            raise UserError("a sweep of target norms needs them held; --norm-control none does not: take another")
        if self.bias_alone and self.intervention != "red":
            raise UserError(f"--bias-alone is a curve beside RED's; got --intervention {self.intervention}")


def main(options: NormSweepOptions) -> None:
    from reft_math.experiments.sweeps import run_norm_sweep

    run_norm_sweep(options, options.target_norms, options.seeds, options.project_number_direction, options.bias_alone)


if __name__ == "__main__":
    run(main, NormSweepOptions, __doc__)
