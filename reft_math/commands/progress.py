"""Progress bars in one style: on standard error, from the main process only, and sparse in a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from reft_math.commands.processes import process_state

# Seconds between two states of a bar: a terminal draws over the last one, a file gets a line for each.
_ON_TERMINAL, _IN_FILE = 0.1, 30.0


def progress(
    over: Iterable[Any] | None = None, *, name: str, unit: str, total: int | None = None, leave: bool = True
) -> Any:
    """Returns a progress bar, moved by iterating over it or by ``update``.

    Args:
        over: Items to iterate over; None for a bar moved by ``update``.
        name: Description of the work.
        unit: Name of one item, in the singular.
        total: Number of items; None for the length of ``over``.
        leave: Keep the bar once it is full.
    """
    seconds = _ON_TERMINAL if sys.stderr.isatty() else _IN_FILE
    return tqdm(
        over,
        desc=name,
        unit=f" {unit}",
        total=total,
        leave=leave,
        disable=not process_state().is_main_process,
        dynamic_ncols=True,
        mininterval=seconds,
        maxinterval=max(seconds, 10.0),
    )
