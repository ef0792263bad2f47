"""Find the largest model that trains on this machine: the most layers of a shape whose training step fits in memory.

    uv run benchmarks/largest.py --shape llama-3-70b --dtype bfloat16 --json results/largest.json

    L = 2 + ⌊(M - m(2)) / ((m(4) - m(2)) / 2)⌋

m(l) is the most that tensors hold in a step of l layers, weights included, and M the memory. L layers are then trained;
where they do not fit, a twentieth fewer, until they do. Weights are random, RED acts on every layer, layers are
recomputed in the backward pass.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common.measure import SHAPES, Dtype, Shape
from benchmarks.scale import Setting
from reft_math.commands.run import run
from reft_math.errors import UserError, require
from reft_math.files.atomic import write_json


@dataclass(frozen=True)
class LargestOptions:
    shape: Shape = field(default="small", metadata={"help": "Llama whose layers are counted."})
    dtype: Dtype = field(default="float32", metadata={"help": "Dtype of the base's weights."})
    memory: float | None = field(default=None, metadata={"help": "GiB to stay within (what is free on the GPU)."})
    k: int = field(default=10, metadata={"help": "Solution tokens to train on."})
    prompt_length: int = field(default=64, metadata={"help": "Tokens per prompt."})
    batch_size: int = field(default=4, metadata={"help": "Problems per batch."})
    json: str | None = field(default=None, metadata={"help": "File for the results."})

    def __post_init__(self) -> None:
        for name in ("k", "prompt_length", "batch_size"):
            require(self, name, lambda value: value >= 1, "at least 1")
        require(self, "memory", lambda value: value is None or value > 0, "positive")


def free_bytes(options: LargestOptions) -> int:
    """Returns the options' memory in bytes, or else what is free on the GPU."""
    import torch

    if options.memory is not None:
        return int(options.memory * 2**30)
    if not torch.cuda.is_available():
        raise UserError("without a GPU the memory to stay within must be given; pass --memory, such as 2")
    return int(torch.cuda.mem_get_info()[0])


def step(options: LargestOptions, layers: int, is_timed: bool = False) -> dict[str, Any]:
    """Trains a step of that many layers; returns parameters, peak in bytes and, if asked for, seconds of a step."""
    sizes = SHAPES[options.shape]
    setting = Setting(
        sizes=sizes,
        dtype=options.dtype,
        k=options.k,
        prompt_length=options.prompt_length,
        batch_size=options.batch_size,
        layers=layers,
        vocabulary=sizes["vocab_size"],
        checkpointing=True,
    )
    return {
        "layers": layers,
        "parameters": setting.parameters,
        "peak_bytes": setting.peak(),
        "seconds_a_step": setting.seconds(3) if is_timed else None,
    }


def largest(options: LargestOptions, memory: int) -> dict[str, Any]:
    """Returns `step` of the most layers that were trained within ``memory`` bytes.

    Raises:
        UserError: One layer does not fit.
    """
    import torch

    two, four = (step(options, layers)["peak_bytes"] for layers in (2, 4))
    layers = 2 + int((memory - two) // ((four - two) / 2))
    while layers > 0:
        try:
            found = step(options, layers, is_timed=True)
        except torch.OutOfMemoryError:
            found = None
        if found is not None and found["peak_bytes"] <= memory:
            return found
        gc.collect()
        torch.cuda.empty_cache()
        layers -= max(1, layers // 20)
    raise UserError(f"one layer of {options.shape} must fit in {memory / 2**30:.3g} GiB; take a larger --memory")


def main(options: LargestOptions) -> None:
    from reft_math.commands.provenance import provenance

    memory = free_bytes(options)
    found = largest(options, memory)
    tokens = options.batch_size * (options.prompt_length + options.k - 1)
    print(
        f"{options.shape}, {options.dtype}: {found['layers']} layers, {found['parameters'] / 1e9:.3g} billion weights,"
        f" train within {memory / 2**30:.3g} GiB, at {found['peak_bytes'] / 2**30:.3g} GiB"
        f" and {tokens / found['seconds_a_step']:,.0f} tokens/s"
    )
    if options.json is not None:
        path = Path(options.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**provenance(options), "memory_bytes": memory, **found})


if __name__ == "__main__":
    run(main, LargestOptions, __doc__)
