"""Measure the whole chain on a real model, each part against its peer, in one run.

    uv run benchmarks/real.py --model MODEL --data-dir ../shared/data --json results/real.json

    train       RED on every layer, K = 10            stock pyreft, whole solutions of the same problems
    calibrate   a sweep over the KL gates             plain ``generate`` of the base, once
    evaluate    gated ``generate``, the gate chosen   plain ``generate`` of the base

Ours and the peer take turns, round by round, after a call of each in which PyTorch counts operations; ratios are of
seconds, within a round. Tokens are those read in training, and those of completions, in calibration under every gate.
``share`` is operations a second over those of one large matrix product; memory is the most that tensors held in
training, weights included.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from benchmarks.common.measure import Dtype, matrix_peak, operations, peak_bytes, spread, timed
from benchmarks.train import Contenders, TrainBenchmarkOptions
from reft_math.commands.run import run
from reft_math.errors import require
from reft_math.files.atomic import write_json

Part = Callable[[], tuple[float, int]]  # seconds and tokens
NAMES = ("ours", "peer")


@dataclass(frozen=True)
class RealOptions:
    model: str = field(default="arithmetic", metadata={"help": "Base: hub id, folder, or the embedded 'arithmetic'."})
    dataset: Literal["gsm8k", "arithmetic"] = field(default="gsm8k", metadata={"help": "Data set of the problems."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder with <dataset>/<split>.jsonl (the hub)."})
    dtype: Dtype = field(default="float32", metadata={"help": "Dtype of the base's weights."})
    batch_size: int = field(default=8, metadata={"help": "Problems per batch of training."})
    steps: int = field(default=4, metadata={"help": "Batches of training per round."})
    problems: int = field(default=16, metadata={"help": "Problems to calibrate and to evaluate on, in one batch."})
    max_new_tokens: int = field(default=256, metadata={"help": "Longest completion."})
    rounds: int = field(default=3, metadata={"help": "Measured rounds."})
    json: str | None = field(default=None, metadata={"help": "File for the results."})

    def __post_init__(self) -> None:
        for name in ("batch_size", "steps", "problems", "max_new_tokens", "rounds"):
            require(self, name, lambda value: value >= 1, "at least 1")


class Chain:
    """Training, calibration and evaluation of one base, ours and the peer's."""

    def __init__(self, options: RealOptions) -> None:
        from reft_math.data.registry import held_out_problems
        from reft_math.decoding.completions import CompletionSettings
        from reft_math.models.base import end_token_ids

        names = ("model", "dataset", "data_dir", "dtype", "batch_size", "steps")
        settings = TrainBenchmarkOptions(**{name: getattr(options, name) for name in names}, peers=["pyreft"])
        self.training = Contenders(settings)
        base, tokenizer, template = self.training.base, self.training.tokenizer, self.training.template
        ends = end_token_ids(base, tokenizer, template)
        self.options, self.device, self.gate = options, base.device, "always"
        self.decoding = CompletionSettings(tokenizer, template, ends, options.max_new_tokens)
        self.generate, self.base_generate = self.training.ours.generate, base.generate
        chosen_by, reported_on = held_out_problems(options.dataset, options.data_dir)
        self.problems = {"calibrate": chosen_by[: options.problems], "evaluate": reported_on[: options.problems]}

    def train(self, name: str) -> tuple[float, int]:
        """Trains some steps; counts the tokens read, the last of each row being a target alone."""
        data = self.training.prefixes if name == "ours" else self.training.solutions
        read = sum(len(row["prompt_ids"]) + len(row["target_ids"]) - (name == "ours") for row in data.rows)
        return self.training.seconds("ours" if name == "ours" else "pyreft", self.options.steps), read

    def calibrate(self) -> tuple[float, int]:
        """Chooses `gate` by a sweep over the KL gates."""
        from reft_math.decoding.gate_sweep import GateSweep
        from reft_math.scoring.evaluate import Scorer, is_numeric
        from reft_math.scoring.gate_choice import KL_GATES, best_gate, evaluate_gates

        problems, found = self.problems["calibrate"], {}
        sweep = GateSweep(self.generate, self.base_generate, self.decoding, self.device, KL_GATES)

        def choose() -> None:
            with Scorer(is_numeric(self.options.dataset, problems)) as score, tempfile.TemporaryDirectory() as folder:
                found.update(evaluate_gates(KL_GATES, problems, sweep.completer, score, Path(folder), len(problems)))

        seconds = timed(choose)
        self.gate = best_gate(found)
        return seconds, round(sum(summary["mean_tokens"] * summary["total"] for summary in found.values()))

    def complete(self, part: str, name: str) -> tuple[float, int]:
        """Completes the part's problems, under the gate chosen or by the base alone."""
        from reft_math.decoding.completions import complete

        generate = partial(self.generate, gate=self.gate) if name == "ours" else self.base_generate
        questions, rows = [problem.question for problem in self.problems[part]], []

        def draw() -> None:
            rows.extend(complete(questions, None, generate=generate, decoding=self.decoding, device=self.device))

        return timed(draw), sum(row["num_tokens"] for row in rows)


def measure(parts: Mapping[str, Part], rounds: int, peak: float) -> dict[str, Any]:
    """Measures ours and the peer: counted operations, then ``rounds`` of both."""
    counted = {name: operations(parts[name]) for name in NAMES}
    runs = [{name: parts[name]() for name in NAMES} for _ in range(rounds)]
    seconds = {name: spread([row[name][0] for row in runs]) for name in NAMES}
    return {
        "ours_vs_peer": spread([row["ours"][0] / row["peer"][0] for row in runs]),
        "seconds": seconds,
        "tokens_a_second": {name: runs[-1][name][1] / seconds[name]["median"] for name in NAMES},
        "share_of_matrix_peak": {name: counted[name] / seconds[name]["median"] / peak for name in NAMES},
    }


def table_row(name: str, found: Mapping[str, Any]) -> Sequence[str]:
    ratio, speed, share = (found[part] for part in ("ours_vs_peer", "tokens_a_second", "share_of_matrix_peak"))
    ratios = [f"{ratio[which]:.2f}" for which in ("median", "lower_quartile", "upper_quartile")]
    return [name, *ratios, *(f"{speed[each]:,.1f}" for each in NAMES), *(f"{share[each]:.0%}" for each in NAMES)]


def main(options: RealOptions) -> None:
    from reft_math.commands.provenance import provenance
    from reft_math.files.tables import print_table

    peak, chain = matrix_peak(options.dtype), Chain(options)
    parts: dict[str, dict[str, Part]] = {
        "train": {name: partial(chain.train, name) for name in NAMES},
        "calibrate": {"ours": chain.calibrate, "peer": partial(chain.complete, "calibrate", "peer")},
        "evaluate": {name: partial(chain.complete, "evaluate", name) for name in NAMES},
    }
    found = {name: measure(part, options.rounds, peak) for name, part in parts.items()}
    weights = sum(weight.nbytes for weight in chain.training.base.parameters())
    peaks = {name: weights + peak_bytes(partial(chain.train, name)) for name in NAMES}
    title = f"{Path(options.model).name}, {options.dtype}, {options.dataset}, gate {chain.gate}"
    columns = ("", "ours / peer", "lower", "upper quartile", "tokens/s", "the peer's", "share", "the peer's")
    print_table(title, columns, [table_row(name, row) for name, row in found.items()])
    mib = [f"{peaks[name] / 2**20:,.0f} MiB" for name in NAMES]
    print(f"peak memory of training: {mib[0]}, the peer's {mib[1]}")
    if options.json is not None:
        path = Path(options.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {"gate": chain.gate, "matrix_peak": peak, "training_peak_bytes": peaks}
        write_json(path, {**provenance(options), **head, **found})


if __name__ == "__main__":
    run(main, RealOptions, __doc__)
