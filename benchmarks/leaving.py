"""Measure what it saves that rows leave once they have ended: answers as long as an evaluation's, one model, one run.

    tar -xf docs/records/qwen2.5-coder-0.5b-gsm8k-200.tar.xz -C results base/records/base.jsonl
    uv run benchmarks/leaving.py --records results/base/records/base.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct

A stopping criterion ends each row where the recorded answer ended; prompts are random tokens. Stock ``generate`` takes
turns with ours in batches of the same size and of twice the size, round by round: ``saved`` is stock's seconds over
ours, within a round, and ``cache`` our largest KV cache over stock's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common.measure import spread, timed
from reft_math.commands.run import run
from reft_math.errors import require
from reft_math.files.atomic import write_json

PROMPT = 95  # tokens of GSM8K's prompts in the mean


@dataclass(frozen=True)
class LeavingOptions:
    records: str = field(metadata={"help": "An evaluation's records; their num_tokens are the lengths."})
    model: str = field(default="arithmetic", metadata={"help": "Base: hub id, folder, or the embedded 'arithmetic'."})
    limit: int = field(default=64, metadata={"help": "Rows, the first of the records."})
    batch_size: int = field(default=16, metadata={"help": "Rows per batch of stock generate."})
    rounds: int = field(default=3, metadata={"help": "Measured rounds."})
    json: str | None = field(default=None, metadata={"help": "File for the results."})

    def __post_init__(self) -> None:
        for name in ("limit", "batch_size", "rounds"):
            require(self, name, lambda value: value >= 1, "at least 1")


def decode(model: Any, lengths: list[int], batch_size: int, **loop: Any) -> tuple[list[Any], int]:
    """Returns every row's drawn tokens and the bytes of the largest cache."""
    import torch

    torch.manual_seed(0)
    prompts = torch.randint(3, model.config.vocab_size, (len(lengths), PROMPT), device=model.device)
    rows: list[Any] = []
    sizes: list[int] = []

    def note(module: Any, args: Any, output: Any) -> None:
        sizes.append(sum(layer.keys.nbytes + layer.values.nbytes for layer in output.past_key_values.layers))

    # An end token that is never drawn: with one, rows that have ended are padded.
    settings = {"do_sample": False, "eos_token_id": model.config.vocab_size, "pad_token_id": 0, **loop}
    handle = model.register_forward_hook(note)
    all_ends = torch.tensor(lengths, device=model.device)
    for batch, ends in zip(prompts.split(batch_size), all_ends.split(batch_size), strict=True):
        stop = [lambda ids, scores, ends=ends, **_: ends <= ids.shape[1] - PROMPT]
        output = model.generate(batch, stopping_criteria=stop, max_new_tokens=max(lengths), **settings)
        rows += [row[:length] for row, length in zip(output[:, PROMPT:].tolist(), ends.tolist(), strict=True)]
    handle.remove()
    return rows, max(sizes)


def main(options: LeavingOptions) -> None:
    from interventions.leaving import sample_leaving
    from reft_math.commands.progress import progress
    from reft_math.commands.provenance import provenance
    from reft_math.models import load_model

    model, size = load_model(options.model), options.batch_size
    lines = Path(options.records).read_text().splitlines()[: options.limit]
    lengths = [json.loads(line)["num_tokens"] for line in lines]
    leave = {"custom_generate": sample_leaving}
    contenders = {
        "stock": partial(decode, model, lengths, size),
        "leaving": partial(decode, model, lengths, size, **leave),
        "leaving, twice the batch": partial(decode, model, lengths, 2 * size, **leave),
    }
    found: dict[str, tuple[list[Any], int]] = {}

    def measured(name: str) -> None:
        found[name] = contenders[name]()

    rounds = [
        {name: timed(partial(measured, name)) for name in contenders}
        for _ in progress(range(options.rounds), name="measuring", unit="round")
    ]
    stock_rows, stock_cache = found.pop("stock")
    report: dict[str, Any] = {}
    print(f"{len(lengths)} rows of {sum(lengths) / len(lengths):.0f} tokens, longest {max(lengths)}, batch {size}")
    for name, (rows, cache) in found.items():
        saved = spread([seconds["stock"] / seconds[name] for seconds in rounds])
        differing = sum(ours != theirs for ours, theirs in zip(rows, stock_rows, strict=True))
        report[name] = {"saved": saved, "cache": cache / stock_cache, "differing": differing}
        low, high = saved["lower_quartile"], saved["upper_quartile"]
        print(f"{name}: saved {saved['median']:.2f} ({low:.2f}-{high:.2f}), cache {cache / stock_cache:.2f}")
        print(f"{differing} of {len(rows)} rows differ")
    if options.json is not None:
        path = Path(options.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**provenance(options), **report, "seconds": rounds, "lengths": lengths})


if __name__ == "__main__":
    run(main, LeavingOptions, __doc__)
