"""Coordinates the processes of a run."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from reft_math.commands.output_folder import claim_output_dir

# A process waits this long for the others: shards of an evaluation differ in the length of their completions.
PATIENCE = timedelta(hours=2)


def process_state() -> PartialState:
    """Returns accelerate's state; under ``torchrun`` it connects the processes, over gloo if there is no GPU."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def claim(options: Any, fingerprints: Mapping[str, Any] | None = None) -> Path:
    """Claims the output folder in the main process, as `claim_output_dir` does, and returns it; the others wait."""
    state = process_state()
    if state.is_main_process:
        claim_output_dir(options, fingerprints)
    state.wait_for_everyone()
    return Path(options.output_dir)


def leave_process_group() -> None:
    """Leaves the process group: the main process goes on alone, the others exit here without an error.

    All leave the group at once: a process that exits while another still holds its connection may abort, and
    ``torchrun`` would then end the whole run. The others skip the interpreter's shutdown: a gloo thread may still
    release a Python object, and taking the interpreter's lock during shutdown aborts the process
    (pytorch/pytorch#179291).
    """
    if not torch.distributed.is_initialized():
        return
    _meet()
    torch.distributed.destroy_process_group()
    if not process_state().is_main_process:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _meet() -> None:
    """Waits until every process has left its last collective operation, including the barrier here.

    They count themselves in the store through which they connected. A barrier is not enough: gloo lets one process
    out while another is still in it, and destroying the group then aborts the other.
    """
    torch.distributed.barrier()
    store = torch.distributed.distributed_c10d._get_default_store()
    store.add("reft_math/parted", 1)
    while store.add("reft_math/parted", 0) < torch.distributed.get_world_size():
        time.sleep(0.01)
