"""What benchmarks share: seconds of a call, with the device's work done, and how they spread over rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


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
