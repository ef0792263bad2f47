"""Shared parts of benchmarks: random models; seconds, operations and peak memory of a call; their spread."""

from __future__ import annotations

import copy
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Shape = Literal["tiny", "small", "medium", "llama-3-8b", "llama-3-70b"]
Dtype = Literal["float32", "bfloat16"]
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 170,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "vocab_size": 400,
    },
    "small": {
        "hidden_size": 256,
        "intermediate_size": 682,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "vocab_size": 32000,
    },
    "medium": {
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "vocab_size": 32000,
    },
    "llama-3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "llama-3-70b": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}


def random_llama(shape: Mapping[str, Any], dtype: Dtype) -> PreTrainedModel:
    """Frozen, on the GPU where there is one; speed does not depend on what the weights are.

    Args:
        shape: One of `SHAPES`, or any fields of a `LlamaConfig`.
        dtype: Of the weights.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**shape, max_position_embeddings=8192, pad_token_id=0, dtype=dtype)
    torch.manual_seed(0)
    with torch.device(device()):
        model = LlamaForCausalLM._from_config(config, dtype=getattr(torch, dtype))
    return model.requires_grad_(False)


def device() -> str:
    """Returns ``cuda`` if there is a GPU, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def timed(contender: Callable[[], Any]) -> float:
    """Measures seconds from an idle device to an idle device."""
    wait()
    start = time.perf_counter()
    contender()
    wait()
    return time.perf_counter() - start


def spread(values: list[float]) -> dict[str, float]:
    """Returns median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median, "lower_quartile": low, "upper_quartile": high}


def wait() -> None:
    """Waits until the device is idle."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes(contender: Callable[[], Any]) -> int:
    """The most that tensors held at any moment beyond what was there before.

    On a GPU what its allocator counted; on a CPU the running sum of allocations and releases in PyTorch's profiler,
    which sees every tensor but no scratch space within a matrix product.
    """
    import torch

    gc.collect()  # else what earlier calls left would be counted as freed by this one
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        contender()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise it reports each start and stop, and a missing GPU
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        contender()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    held = peak = 0
    for event in sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]  # negative if memory is freed
        peak = max(peak, held)
    return peak


def operations(contender: Callable[[], Any]) -> int:
    """Multiplications and additions in the matrix products and attentions that PyTorch is asked for."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        contender()
    return int(counter.get_total_flops())


def matrix_peak(dtype: Dtype) -> float:
    """Operations a second of one product of square matrices, the fastest of 10: what the machine gives at best."""
    import torch

    size = 8192 if torch.cuda.is_available() else 2048
    a, b = (torch.randn(size, size, dtype=getattr(torch, dtype), device=device()) for _ in range(2))
    return 2 * size**3 / min(timed(lambda: a @ b) for _ in range(10))


def read_peak() -> float:
    """Bytes a second of reading one gibibyte, the fastest of 10."""
    import torch

    tensor = torch.ones(2**28, device=device())
    return tensor.nbytes / min(timed(tensor.sum) for _ in range(10))


def step_clock() -> Any:
    """A callback that notes when the first step began and when the last one ended, in seconds."""
    from transformers import TrainerCallback

    class StepClock(TrainerCallback):
        start = end = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 0:
                wait()
                self.start = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            wait()
            self.end = time.perf_counter()

    return StepClock()


def training_arguments(steps: int, batch_size: int, checkpointing: bool = False) -> Any:
    """Returns arguments of a trainer that writes and prints nothing."""
    import torch
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=tempfile.gettempdir(),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=1e-4,
        use_cpu=not torch.cuda.is_available(),
        **({"gradient_checkpointing": True} if checkpointing else {}),  # a new name from transformers 5.23 on warns
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )


def sharing(model: PreTrainedModel) -> PreTrainedModel:
    """Returns another model on the same weights, without the first one's hooks."""
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)
