"""Evaluate a model, with or without an adapter, on held-out problems of the embedded arithmetic world.

    uv run eval/arithmetic.py --adapter results/prefix-reft/adapter
    uv run eval/arithmetic.py --opener stepwise --output-dir results/careful-start

With ``--opener`` every completion starts with that style's first tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from reft_math.commands.options.evaluation import EvaluationOptions
from reft_math.commands.run import run


@dataclass(frozen=True)
class ArithmeticOptions(EvaluationOptions):
    output_dir: str = field(default="results/arithmetic", metadata={"help": "Records and results go here."})
    batch_size: int = field(default=100, metadata={"help": "Problems per batch."})
    opener: Literal["none", "at_once", "combined", "stepwise"] = field(
        default="none", metadata={"help": "Solution style whose first tokens start every completion."}
    )


def main(options: ArithmeticOptions) -> None:
    from reft_math.data.arithmetic.problems import OPENERS
    from reft_math.experiments.evaluation import run_evaluation

    opener = "" if options.opener == "none" else OPENERS[options.opener]
    run_evaluation(options, "arithmetic", opener)


if __name__ == "__main__":
    run(main, ArithmeticOptions, __doc__)
