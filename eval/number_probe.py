"""Probe how a model encodes numbers, push sums along the probes, and measure what an adapter changes along them.

    uv run eval/number_probe.py --adapter results/prefix-reft/adapter
    uv run eval/number_probe.py --adapter results/prefix-reft/adapter --reft results/reft-free/adapter

Without ``--adapter`` only the base is probed and pushed. A push adds α times a direction to the output of layers, at
every position. Writes tables (CSV), figures (PNG and SVG), ``probes/*.safetensors``, records and ``results.json``:

- ``probes.csv``: R² and error of ``ŷ = wᵀh + c`` on held-out problems, by layer and place;
- ``pushes.csv``, ``thresholds.csv``: wrong sums against α; the |α| at which 5 more in 1,000 are wrong;
- ``changes.csv``, ``shares.csv``, ``positions.csv``: an adapter's changes of each block's output along its probe.

``--resume`` goes on from the records.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from reft_math.commands.options.evaluation import RunOptions
from reft_math.commands.run import run
from reft_math.errors import UserError, require, require_seed

ALPHAS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)


@dataclass(frozen=True)
class NumberProbeOptions(RunOptions):
    dataset: str = field(default="arithmetic", metadata={"help": "Data set, or .json/.jsonl file."})
    reft: str | None = field(
        default=None, metadata={"help": "Ordinary ReFT adapter to show beside the adapter: folder or hub id."}
    )
    limit: int | None = field(default=200, metadata={"help": "Use only the first N problems."})
    digits: int = field(default=2, metadata={"help": "Digits of each number in the sums."})
    sums: int = field(default=1000, metadata={"help": "Number of sums to push."})
    alphas: list[float] = field(
        default_factory=lambda: list(ALPHAS),
        metadata={"help": "|α|, in units of a layer's mean residual norm (0.02 to 1); both signs are pushed."},
    )
    layer: int | None = field(
        default=None, metadata={"help": "Layer to push beside all and the middle one (the best-read other layer)."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of sums, directions and held-out problems."})
    batch_size: int = field(default=100, metadata={"help": "Texts, sums or completions per batch."})
    output_dir: str = field(default="results/number_probe", metadata={"help": "Everything goes here."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("digits", "sums"):
            require(self, name, lambda value: value >= 1, "at least 1")
        require(
            self,
            "alphas",
            lambda value: value and all(0 < size < math.inf for size in value),
            "finite sizes above 0; both signs are pushed",
        )
        require_seed(self)
        if self.reft is not None and self.adapter is None:
            raise UserError("--reft is shown beside an adapter; pass --adapter too, or the one as --adapter")
        if self.handoff != "base":
            raise UserError("changes are measured until the gate closes; leave --handoff out")


def main(options: NumberProbeOptions) -> None:
    from reft_math.experiments.number_probe import Plan, run_number_probe

    plan = Plan(options.digits, options.sums, options.alphas, options.layer, options.seed)
    run_number_probe(options, options.dataset, plan, options.reft)


if __name__ == "__main__":
    run(main, NumberProbeOptions, __doc__)
