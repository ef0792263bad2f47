"""Evaluate a model, with or without an adapter, on MATH500.

    uv run eval/math500.py --model Qwen/Qwen2.5-7B-Instruct --template chat-boxed

Answers are compared by math-verify in worker processes with a time limit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from reft_math.commands.options.evaluation import EvaluationOptions
from reft_math.commands.run import run


@dataclass(frozen=True)
class Math500Options(EvaluationOptions):
    output_dir: str = field(default="results/math500", metadata={"help": "Records and results go here."})


def main(options: Math500Options) -> None:
    from reft_math.experiments.evaluation import run_evaluation

    run_evaluation(options, "math500")


if __name__ == "__main__":
    run(main, Math500Options, __doc__)
