"""Measure what reading prompts once saves: seconds of each epoch with and without `--prompt-cache`, one model, one run.

    uv run benchmarks/prompt_cache.py --model MODEL --data-dir ../shared/data --json results/prompt-cache.json

RED on every layer acts on generated tokens, K = 10; both trainers take turns, round by round. ``saved`` is the seconds
of reading prompts in every step over those of reading them once, within a round: in the first epoch, which reads them,
in a later one, and over all; medians and quartiles over the rounds. A trainer's start and end are left out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.common.measure import spread, training_arguments, wait
from reft_math.commands.run import run
from reft_math.errors import require
from reft_math.files.atomic import write_json

K = 10


@dataclass(frozen=True)
class PromptCacheOptions:
    model: str = field(default="arithmetic", metadata={"help": "Base: hub id, folder, or the embedded 'arithmetic'."})
    dataset: Literal["gsm8k", "arithmetic"] = field(default="gsm8k", metadata={"help": "Data set of the rows."})
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder with <dataset>/<split>.jsonl instead of the hub."}
    )
    train_size: int = field(default=16, metadata={"help": "Training problems."})
    batch_size: int = field(default=8, metadata={"help": "Problems per batch."})
    epochs: int = field(default=3, metadata={"help": "Passes over the problems."})
    rounds: int = field(default=3, metadata={"help": "Timed rounds."})
    json: str | None = field(default=None, metadata={"help": "File for the results."})

    def __post_init__(self) -> None:
        for name in ("train_size", "batch_size", "rounds"):
            require(self, name, lambda value: value >= 1, "at least 1")
        require(self, "epochs", lambda value: value >= 2, "at least 2")


def epoch_seconds(options: PromptCacheOptions, model: Any, dataset: Any, is_cached: bool) -> list[float]:
    """Trains fresh interventions and returns the seconds of each epoch."""
    from transformers import PrinterCallback, TrainerCallback

    from interventions import PrefixReftConfig, get_prefix_reft_model
    from reft_math.data.prefix import PrefixCollator
    from reft_math.training.prompt_cache import BehindPrompts, make_prompt_cache
    from reft_math.training.trainer import PrefixTrainer

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
            wait()
            times.append(time.perf_counter())

        on_epoch_end = on_epoch_begin

    prompts = [row["prompt_ids"] for row in dataset.rows]
    cache = make_prompt_cache(model, prompts, 4.0, checkpointing=False) if is_cached else None
    trainer = PrefixTrainer(
        model=get_prefix_reft_model(model, PrefixReftConfig(site="ffn_up", positions="generated")),
        args=training_arguments(options.epochs * -(-options.train_size // options.batch_size), options.batch_size),
        train_dataset=dataset,
        data_collator=PrefixCollator(0, "generated") if cache is None else BehindPrompts(0),
        prompt_cache=cache,
        callbacks=[Clock()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [end - start for start, end in zip(times[::2], times[1::2], strict=True)]


def main(options: PromptCacheOptions) -> None:
    from reft_math.commands.progress import progress
    from reft_math.commands.provenance import provenance
    from reft_math.data.prefix import PrefixDataset
    from reft_math.data.registry import load_problems
    from reft_math.data.templates import get_template
    from reft_math.files.tables import print_table
    from reft_math.models import load_model, load_tokenizer

    model, tokenizer = load_model(options.model), load_tokenizer(options.model)
    problems = load_problems(options.dataset, "train", limit=options.train_size, data_dir=options.data_dir)
    dataset = PrefixDataset(problems, tokenizer, get_template("auto", tokenizer), K)
    rounds = [
        [epoch_seconds(options, model, dataset, is_cached) for is_cached in (False, True)]
        for _ in progress(range(options.rounds), name="measuring", unit="round")
    ]
    parts = {"first epoch": slice(1), "later epochs": slice(1, None), "all epochs": slice(None)}
    saved = {
        name: spread([sum(every[part]) / sum(once[part]) for every, once in rounds]) for name, part in parts.items()
    }
    tokens = sum(len(row["prompt_ids"]) for row in dataset.rows) / options.train_size
    rows = [
        [name, *(f"{ratio[which]:.2f}" for which in ("median", "lower_quartile", "upper_quartile"))]
        for name, ratio in saved.items()
    ]
    title = f"{options.model}: {options.train_size} prompts of {tokens:.0f} tokens, K = {K}, batch {options.batch_size}"
    print_table(title, ("saved", "median", "lower quartile", "upper quartile"), rows)
    if options.json is not None:
        path = Path(options.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**provenance(options), "saved": saved, "seconds": rounds, "mean_prompt_tokens": tokens})


if __name__ == "__main__":
    run(main, PromptCacheOptions, __doc__)
