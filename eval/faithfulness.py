"""Fit probes that tell true statements from false ones, and measure how an adapter shifts their scores.

    uv run eval/faithfulness.py --adapter results/prefix-reft/adapter
    uv run eval/faithfulness.py --adapter results/prefix-reft/adapter --reft results/reft-free/adapter
    uv run eval/faithfulness.py --statements results --output-dir results/arithmetic-truth

The statements are sentences of the question, repeated as answers, and the same with one given number changed; or, for
arithmetic truth, those of reference solutions with one result changed. Logistic probes are fitted on the base and three
quarters of the questions, for the residual stream and every attention head of each layer. On the rest, scores of true
minus false statements are taken for the base and for the adapter always on, for the tokens it was trained on, and under
its gate. Without ``--adapter`` only the base. Writes figures (PNG and SVG), ``probes/*.safetensors``, records,
``results.json`` and

- ``probes.csv``: accuracy on held-out questions, by layer and head; ``reads``: better than chance;
- ``scores.csv``: scores and their differences from the base's (``delta``), by source, layer, head and position;
  ``open``: share of texts after which the gate is open; ``mixed``: pairs left out because it is open after one only.

``--resume`` goes on from the records.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from reft_math.commands.options.evaluation import RunOptions
from reft_math.commands.run import run
from reft_math.errors import UserError, require_seed


@dataclass(frozen=True)
class FaithfulnessOptions(RunOptions):
    dataset: str = field(default="arithmetic", metadata={"help": "Data set, or .json/.jsonl file."})
    statements: Literal["givens", "results"] = field(
        default="givens",
        metadata={"help": "Number to falsify: a given of the question, or the solution's result (arithmetic truth)."},
    )
    reft: str | None = field(
        default=None, metadata={"help": "Ordinary ReFT adapter to show beside the adapter: folder or hub id."}
    )
    limit: int | None = field(default=500, metadata={"help": "Use only the first N problems."})
    seed: int = field(default=0, metadata={"help": "Seed of wrong numbers and held-out problems."})
    batch_size: int = field(default=100, metadata={"help": "Texts per batch."})
    output_dir: str = field(default="results/faithfulness", metadata={"help": "Everything goes here."})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_seed(self)
        if self.reft is not None and self.adapter is None:
            raise UserError("--reft is shown beside an adapter; pass --adapter too, or the one as --adapter")


def main(options: FaithfulnessOptions) -> None:
    from reft_math.experiments.faithfulness import run_faithfulness

    run_faithfulness(options, options.dataset, options.statements, options.seed, options.reft)


if __name__ == "__main__":
    run(main, FaithfulnessOptions, __doc__)
