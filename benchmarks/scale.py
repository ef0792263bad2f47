"""Measure how the cost of a training step grows, against the count of its operations.

    uv run benchmarks/scale.py --json results/scale.json

One setting (a random Llama, RED on every layer, prompts of random tokens and K tokens of a solution), of which one
quantity at a time takes the values of its ladder while the others stay. All ladders are climbed once a round.

    measured   slope of log seconds over log quantity, by least squares within a round: 1 is proportional, 0 is free
    counted    the same of operations in matrix products and attentions, as PyTorch counts them
    share      those operations a second over those of one large product of the same dtype, at the ladder's two ends

Processes (``torchrun``, a thread each) have as many problems each, so that 0 is perfect; on fewer cores than processes
their slope says nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from benchmarks.common.measure import (
    SHAPES,
    Dtype,
    Shape,
    matrix_peak,
    operations,
    peak_bytes,
    random_llama,
    spread,
    step_clock,
    training_arguments,
)
from reft_math.commands.run import run
from reft_math.errors import require
from reft_math.files.atomic import write_json

LADDERS: dict[str, tuple[int, ...]] = {
    "k": (5, 10, 20, 40),
    "batch_size": (4, 8, 16, 32),
    "prompt_length": (32, 64, 128, 256),
    "layers": (2, 4, 8, 16),
    "vocabulary": (8000, 16000, 32000, 64000),
    "processes": (1, 2),
}


@dataclass(frozen=True)
class ScaleOptions:
    shape: Shape = field(default="small", metadata={"help": "Llama of hidden size 64, 256 or 512, or like Llama 3's."})
    dtype: Dtype = field(default="float32", metadata={"help": "Dtype of the base's weights."})
    k: int = field(default=10, metadata={"help": "Solution tokens to train on."})
    prompt_length: int = field(default=64, metadata={"help": "Tokens per prompt."})
    batch_size: int = field(default=16, metadata={"help": "Problems per batch and process."})
    steps: int = field(default=4, metadata={"help": "Batches per timing, after one warm-up batch."})
    rounds: int = field(default=3, metadata={"help": "Measurements of each ladder."})
    ladders: list[str] = field(default_factory=lambda: [*LADDERS], metadata={"help": "Quantities (all)."})
    json: str | None = field(default=None, metadata={"help": "File for the results."})

    def __post_init__(self) -> None:
        for name in ("k", "prompt_length", "batch_size", "steps", "rounds"):
            require(self, name, lambda value: value >= 1, "at least 1")
        require(self, "ladders", lambda value: not set(value) - set(LADDERS), f"among {', '.join(LADDERS)}")


@dataclass(frozen=True)
class Setting:
    """The quantities that determine a step's cost."""

    sizes: Mapping[str, Any]
    dtype: Dtype
    k: int
    prompt_length: int
    batch_size: int
    layers: int
    vocabulary: int
    checkpointing: bool = False

    def seconds(self, steps: int) -> float:
        """Of one step, in the mean of ``steps``, after one that is not timed."""
        self._train(1)
        return self._train(steps) / steps

    def counted(self) -> int:
        """Operations of one step."""
        return operations(lambda: self._train(1))

    def peak(self) -> int:
        """The most bytes that tensors hold in one step, weights included."""
        held = sum(weight.nbytes for weight in self._model.model.parameters())
        return int(held) + peak_bytes(lambda: self._train(1))

    @property
    def parameters(self) -> int:
        """Number of the base's weights."""
        return int(sum(weight.numel() for weight in self._model.model.parameters()))

    @cached_property
    def _model(self) -> Any:
        from interventions import PrefixReftConfig, get_prefix_reft_model

        sizes = {**self.sizes, "num_hidden_layers": self.layers, "vocab_size": self.vocabulary}
        return get_prefix_reft_model(random_llama(sizes, self.dtype).train(), PrefixReftConfig())

    def _train(self, steps: int) -> float:
        """Seconds."""
        import torch
        from transformers import PrinterCallback

        from reft_math.data.prefix import PrefixCollator
        from reft_math.training.norm_control import ProjectionController
        from reft_math.training.trainer import NormControl, PrefixTrainer

        rows = self.batch_size * steps * int(os.environ.get("WORLD_SIZE", "1"))
        tokens = torch.randint(1, self.vocabulary, (rows, self.prompt_length + self.k)).tolist()
        clock, split = step_clock(), self.prompt_length
        trainer = PrefixTrainer(
            model=self._model,
            args=training_arguments(steps, self.batch_size, self.checkpointing),
            train_dataset=[
                {"id": str(i), "prompt_ids": row[:split], "target_ids": row[split:]} for i, row in enumerate(tokens)
            ],
            data_collator=PrefixCollator(0, "all"),
            norm_control=NormControl(self._model, ProjectionController(0.54), target_scale_norm=None),
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return float(clock.end - clock.start)


def setting_of(options: ScaleOptions) -> Setting:
    """Where the ladders start from."""
    sizes = SHAPES[options.shape]
    return Setting(
        sizes=sizes,
        dtype=options.dtype,
        k=options.k,
        prompt_length=options.prompt_length,
        batch_size=options.batch_size,
        layers=sizes["num_hidden_layers"],
        vocabulary=sizes["vocab_size"],
    )


def settings(ladder: str, options: ScaleOptions) -> list[Setting]:
    """With one quantity at each value of its ladder."""
    start = setting_of(options)
    return [replace(start, **cast(dict[str, Any], {ladder: value})) for value in LADDERS[ladder]]


def climb(ladder: str, options: ScaleOptions) -> list[float]:
    """Seconds of a step at each value."""
    if ladder == "processes":
        return [seconds_of_processes(number, options) for number in LADDERS[ladder]]
    return [setting.seconds(options.steps) for setting in settings(ladder, options)]


def count(ladder: str, options: ScaleOptions) -> list[int]:
    """Operations of a step, in each process, at each value."""
    if ladder == "processes":
        return [setting_of(options).counted()] * len(LADDERS[ladder])
    return [setting.counted() for setting in settings(ladder, options)]


def seconds_of_processes(number: int, options: ScaleOptions) -> float:
    """Of a step of this command under ``torchrun``, where it measures its setting alone."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seconds.json"
        names = ("shape", "dtype", "k", "prompt_length", "batch_size", "steps")
        settings = [word for name in names for word in (f"--{name}", str(getattr(options, name)))]
        line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
        line += [__file__, *settings, "--json", str(path)]
        subprocess.run(line, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        return float(json.loads(path.read_text(encoding="utf-8")))


def slope(values: Sequence[float], costs: Sequence[float]) -> float:
    """Of ``log cost`` over ``log value``, by least squares."""
    import numpy as np

    return float(np.polyfit(np.log(values), np.log(costs), deg=1)[0])


def main(options: ScaleOptions) -> None:
    if "RANK" in os.environ:
        from reft_math.commands.processes import leave_process_group

        seconds = setting_of(options).seconds(options.steps)
        leave_process_group()
        write_json(Path(str(options.json)), seconds)
    else:
        measure(options)


def measure(options: ScaleOptions) -> None:
    """Prints the table and writes the figures."""
    from reft_math.commands.progress import progress
    from reft_math.commands.provenance import provenance
    from reft_math.files.tables import print_table

    rounds: dict[str, list[list[float]]] = {ladder: [] for ladder in options.ladders}
    for ladder in progress(options.ladders * options.rounds, name="measuring", unit="ladder"):
        rounds[ladder].append(climb(ladder, options))
    peak = matrix_peak(options.dtype)
    figures, rows = {}, []
    for ladder, climbs in rounds.items():
        values, counted = LADDERS[ladder], count(ladder, options)
        seconds = [spread(list(column)) for column in zip(*climbs, strict=True)]
        measured = spread([slope(values, row) for row in climbs])
        shares = [number / cost["median"] / peak for number, cost in zip(counted, seconds, strict=True)]
        figures[ladder] = {
            "values": values,
            "seconds": seconds,
            "operations": counted,
            "measured_slope": measured,
            "counted_slope": slope(values, counted),
            "share_of_matrix_peak": shares,
        }
        rows.append(
            [
                ladder.replace("_", " "),
                f"{values[0]:,} - {values[-1]:,}",
                f"{measured['median']:.2f}",
                f"{measured['lower_quartile']:.2f} - {measured['upper_quartile']:.2f}",
                f"{figures[ladder]['counted_slope']:.2f}",
                " - ".join(f"{1000 * cost['median']:,.0f}" for cost in (seconds[0], seconds[-1])),
                " - ".join(f"{share:.0%}" for share in (shares[0], shares[-1])),
            ]
        )
    title = (
        f"{options.shape}, {options.dtype}, K = {options.k}, prompts of {options.prompt_length} tokens,"
        f" batch {options.batch_size}"
    )
    print_table(title, ("", "values", "measured", "quartiles", "counted", "ms a step", "share of peak"), rows)
    if options.json is not None:
        path = Path(options.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**provenance(options), "matrix_peak": peak, "ladders": figures})


if __name__ == "__main__":
    run(main, ScaleOptions, __doc__)
