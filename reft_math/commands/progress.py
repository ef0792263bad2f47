"""Progress bars of one look: on standard error, by the main process only, and sparse in a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from reft_math.commands.processes import process_state

# Seconds between two states of a bar: on a terminal it is drawn over, in a file each takes a line's room.
_ON_TERMINAL, _IN_FILE = 0.1, 30.0


def progress(
    over: Iterable[Any] | None = None, *, name: str, unit: str, total: int | None = None, leave: bool = True
) -> Any:
    """A bar over what is iterated, or to be moved by ``update``.

    Args:
        over: What is iterated; None for a bar that is updated.
        name: What is done.
        unit: Of what is counted, in the singular.
        total: How many; None for the length of ``over``.
        leave: Whether it stays once it is full.
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
