"""Which of a run's processes this is."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from reft_math.command import claim_output_dir

# A process waits this long for the others: shards of an evaluation differ in how long their completions get.
PATIENCE = timedelta(hours=2)


def process_state() -> PartialState:
    """accelerate's state; under ``torchrun`` the processes find each other, over gloo where there is no GPU."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def claim(options: Any) -> Path:
    """The output folder, claimed by the main process; the others wait for it."""
    state = process_state()
    if state.is_main_process:
        claim_output_dir(options)
    state.wait_for_everyone()
    return Path(options.output_dir)


def part_ways() -> bool:
    """Ends what the processes do together; true in the main process, which goes on alone.

    All leave the group at once: a process that exits while another still holds its connection may abort, and
    ``torchrun`` would take the rest of the run down with it.
    """
    state = process_state()
    if torch.distributed.is_initialized():
        _meet()
        torch.distributed.destroy_process_group()
    return bool(state.is_main_process)


def _meet() -> None:
    """Waits until every process has left its last collective operation, the barrier here among them.

    They count themselves in the store through which they found each other. A barrier alone does not do: gloo lets one
    process out while another is still in it, and taking the group down then aborts the other.
    """
    torch.distributed.barrier()
    store = torch.distributed.distributed_c10d._get_default_store()
    store.add("reft_math/parted", 1)
    while store.add("reft_math/parted", 0) < torch.distributed.get_world_size():
        time.sleep(0.01)
