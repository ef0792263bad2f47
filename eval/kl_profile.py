"""Measure the divergence from the base along always-on completions, and accuracy against the gate.

    uv run eval/kl_profile.py --adapter results/prefix-reft/adapter

Writes ``kl_profile.csv`` and ``gates.csv``, the figure (PNG and SVG), every record, and ``results.json``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from reft_math.commands.options.evaluation import RunOptions
from reft_math.commands.run import run
from reft_math.errors import UserError

NATS = ("0.5", "1", "1.4", "1.7", "2", "2.8", "4", "5.6", "8", "11", "16", "32")
GATES = [
    *(f"kl:{nats}" for nats in NATS),
    *(f"kl:{nats},min=1" for nats in NATS),
    *(f"tokens:{count}" for count in (1, 2, 4, 8, 10, 12, 16, 24, 32)),
]


@dataclass(frozen=True)
class KLProfileOptions(RunOptions):
    dataset: str = field(default="arithmetic", metadata={"help": "Data set, or .json/.jsonl file."})
    gates: list[str] = field(
        default_factory=lambda: list(GATES),
        metadata={"help": "Gates for accuracy (kl:0.5 to kl:32, the same with min=1, tokens:1 to tokens:32)."},
    )
    output_dir: str = field(default="results/kl_profile", metadata={"help": "Everything goes here."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adapter is None:
            raise UserError("--adapter names whose divergence to measure; pass a folder or hub id")


def main(options: KLProfileOptions) -> None:
    if options.gate is not None:
        raise UserError("--gates names the gates to try; leave --gate out")
    from reft_math.experiments.kl_profile import run_kl_profile

    run_kl_profile(options, options.dataset, options.gates)


if __name__ == "__main__":
    run(main, KLProfileOptions, __doc__)
