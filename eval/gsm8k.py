"""Evaluate a model, with or without an adapter, on GSM8K's test problems.

    uv run eval/gsm8k.py --model meta-llama/Meta-Llama-3-8B-Instruct --adapter results/prefix-reft/adapter

Reports accuracy by the stated answer, else the last number (``correct``), and by each alone (``strict``, ``flexible``),
with a Wilson interval.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from reft_math.commands.options.evaluation import EvaluationOptions
from reft_math.commands.run import run


@dataclass(frozen=True)
class Gsm8kOptions(EvaluationOptions):
    output_dir: str = field(default="results/gsm8k", metadata={"help": "Records and results go here."})


def main(options: Gsm8kOptions) -> None:
    from reft_math.experiments.evaluation import run_evaluation

    run_evaluation(options, "gsm8k")


if __name__ == "__main__":
    run(main, Gsm8kOptions, __doc__)
