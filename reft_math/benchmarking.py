"""What benchmarks share: seconds and peak memory of a call, their spread over rounds, one model's weights in two."""

from __future__ import annotations

import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def timed(contender: Callable[[], Any]) -> float:
    """Seconds from an idle device to an idle device."""
    wait()
    start = time.perf_counter()
    contender()
    wait()
    return time.perf_counter() - start


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": median, "lower_quartile": low, "upper_quartile": high}


def wait() -> None:
    """Until the device has done what it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes(contender: Callable[[], Any]) -> int:
    """The most that tensors held at any moment beyond what was there before.

    On a GPU what its allocator counted; on a CPU the running sum of allocations and releases in PyTorch's profiler,
    which sees every tensor but no scratch space within a matrix product.
    """
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        contender()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it reports each start and stop, and a missing GPU
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        contender()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    held = peak = 0
    for event in sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]  # negative where memory is given back
        peak = max(peak, held)
    return peak


def sharing(model: PreTrainedModel) -> PreTrainedModel:
    """Another model, without the first one's hooks, on the same weights."""
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)
