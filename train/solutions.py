"""Sample solutions of training problems from a model and keep the right ones, to train the model on.

    uv run train/solutions.py --model Qwen/Qwen2.5-0.5B-Instruct --dataset gsm8k --samples 4 --limit 1000
    uv run train/prefix_reft.py --model Qwen/Qwen2.5-0.5B-Instruct --dataset own.jsonl --eval-dataset gsm8k

Reference solutions are often shorter than the model's own and teach it to answer in fewer steps than it needs. The
output folder holds ``solutions.jsonl`` (``own.jsonl`` above), ``records/`` (every sample with its score) and
``results.json`` (settings, versions, yield). With ``--engine`` a server draws the samples.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

from reft_math.commands.options.evaluation import EvaluationOptions
from reft_math.commands.run import run
from reft_math.errors import UserError


@dataclass(frozen=True)
class SolutionsOptions(EvaluationOptions):
    dataset: str = field(
        default="arithmetic", metadata={"help": "arithmetic, gsm8k, math10k, or your own .json/.jsonl file."}
    )
    samples: int = field(default=4, metadata={"help": "Solutions per problem."})
    temperature: float | None = field(default=0.7, metadata={"help": "Sampling temperature."})
    keep: Literal["all", "shortest"] = field(
        default="all", metadata={"help": "Keep every right solution, or the shortest one of each problem."}
    )
    output_dir: str = field(default="results/solutions", metadata={"help": "Solutions, records and results go here."})


def main(options: SolutionsOptions) -> None:
    from reft_math.commands.output_folder import RESULTS_NAME
    from reft_math.commands.processes import leave_process_group
    from reft_math.data.fingerprint import about_problems
    from reft_math.data.own_solutions import right_solutions, solution_yield
    from reft_math.data.registry import load_problems
    from reft_math.files.atomic import write_json, write_text
    from reft_math.files.tables import print_table
    from reft_math.scoring.context import batch_completer, load_setting
    from reft_math.scoring.evaluate import Scorer, evaluate, is_numeric

    problems = load_problems(options.dataset, "train", data_dir=options.data_dir, limit=options.limit)
    setting = load_setting(options, options.dataset)
    about = about_problems(options.dataset, train=problems)
    folder = setting.claim(about)
    with Scorer(is_numeric(options.dataset, problems)) as score:
        records = evaluate(
            problems,
            batch_completer(setting, options),
            score,
            folder / "records" / "samples.jsonl",
            options.dataset,
            batch_size=options.batch_size,
            samples=options.samples,
            seed=options.seed if options.sampling else None,
        )
    leave_process_group()
    rows = right_solutions(records, options.keep)
    found = solution_yield(records, rows)
    if rows:
        write_text(folder / "solutions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_json(folder / RESULTS_NAME, {**setting.provenance(), **about, "yield": found})
    print_table(f"{options.dataset}, training problems", list(found), [[_cell(value) for value in found.values()]])
    if not rows:
        raise UserError(
            f"no sample of {len(problems)} problems was right and ended by itself; look at {folder / 'records'}: a"
            " larger --max-new-tokens or --samples, or another --template, may help"
        )
    print(f"solutions: {folder / 'solutions.jsonl'}")
    print(f"results: {folder / RESULTS_NAME}")


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


if __name__ == "__main__":
    run(main, SolutionsOptions, __doc__)
