"""Measure a sweep over gates against a decoding under each: seconds, and how many completions differ.

    uv run benchmarks/calibrate.py --adapter results/prefix-reft/adapter
    uv run benchmarks/calibrate.py --adapter results/qwen/red/adapter --dataset gsm8k --limit 16 --max-new-tokens 256

Both take turns, round by round; the ratio is taken within a round. They draw the same tokens but for exact ties, which
batches of other sizes may round otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.common.measure import spread, timed
from reft_math.commands.options.evaluation import ModelOptions
from reft_math.commands.run import run
from reft_math.errors import UserError, require
from reft_math.files.atomic import write_json


@dataclass(frozen=True)
class CalibrateBenchmarkOptions(ModelOptions):
    dataset: str = field(default="arithmetic", metadata={"help": "Problems: arithmetic, gsm8k or a file."})
    limit: int = field(default=100, metadata={"help": "Validation problems, in one batch."})
    rounds: int = field(default=3, metadata={"help": "Measured rounds."})
    json: str | None = field(default=None, metadata={"help": "File for the results."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("limit", "rounds"):
            require(self, name, lambda value: value >= 1, "at least 1")
        if self.handoff != "base":
            raise UserError("a sweep goes on from the base's cache; leave --handoff out")
        if self.adapter is None:
            raise UserError("a gate is an adapter's; name one with --adapter")


def main(options: CalibrateBenchmarkOptions) -> None:
    from reft_math.commands.progress import progress
    from reft_math.commands.provenance import provenance
    from reft_math.data.registry import problems_to_choose_by
    from reft_math.scoring.context import load_setting
    from reft_math.scoring.gate_choice import KL_GATES

    setting = load_setting(options, options.dataset)
    problems = problems_to_choose_by(options.dataset, options.data_dir)[: options.limit]
    questions = [problem.question for problem in problems]
    found: dict[str, list[list[str]]] = {}

    def decode(name: str) -> None:
        completer = setting.completers(KL_GATES) if name == "sweep" else setting.completer
        found[name] = [[row["completion"] for row in completer(gate)(questions, None)] for gate in KL_GATES]

    rounds = [
        {name: timed(partial(decode, name)) for name in ("each", "sweep")}
        for _ in progress(range(options.rounds), name="measuring", unit="round")
    ]
    pairs = [pair for gates in zip(found["each"], found["sweep"], strict=True) for pair in zip(*gates, strict=True)]
    differing = sum(one != other for one, other in pairs)
    ratio = spread([seconds["sweep"] / seconds["each"] for seconds in rounds])
    low, high = ratio["lower_quartile"], ratio["upper_quartile"]
    print(
        f"{len(KL_GATES)} gates, {len(questions)} problems: sweep / each {ratio['median']:.2f} ({low:.2f}-{high:.2f})"
    )
    print(f"{differing} of {len(pairs)} completions differ")
    if options.json is not None:
        spent = {name: spread([seconds[name] for seconds in rounds]) for name in rounds[0]}
        path = Path(options.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        report = {"seconds": spent, "sweep_vs_each": ratio, "completions": len(pairs), "differing": differing}
        write_json(path, {**provenance(options), **report})


if __name__ == "__main__":
    run(main, CalibrateBenchmarkOptions, __doc__)
