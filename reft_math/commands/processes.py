"""Which of a run's processes this is."""

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

# A process waits this long for the others: shards of an evaluation differ in how long their completions get.
PATIENCE = timedelta(hours=2)


def process_state() -> PartialState:
    """accelerate's state; under ``torchrun`` the processes find each other, over gloo where there is no GPU."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def claim(options: Any, fingerprints: Mapping[str, Any] | None = None) -> Path:
    """The output folder, claimed by the main process as by `claim_output_dir`; the others wait for it."""
    state = process_state()
    if state.is_main_process:
        claim_output_dir(options, fingerprints)
    state.wait_for_everyone()
    return Path(options.output_dir)


def leave_process_group() -> None:
    """Ends what the processes do together: the main process goes on alone, the others end here, well.

    All leave the group at once: a process that exits while another still holds its connection may abort, and
    ``torchrun`` would take the rest of the run down with it. The others leave the interpreter as it is: a thread of
    gloo's may still have to let go of a Python object, and one that asks for the interpreter's lock while it is being
    taken down aborts the process (pytorch/pytorch#179291).
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
    """Waits until every process has left its last collective operation, the barrier here among them.

    They count themselves in the store through which they found each other. A barrier alone does not do: gloo lets one
    process out while another is still in it, and taking the group down then aborts the other.
    """
    torch.distributed.barrier()
    store = torch.distributed.distributed_c10d._get_default_store()
    store.add("reft_math/parted", 1)
    while store.add("reft_math/parted", 0) < torch.distributed.get_world_size():
        time.sleep(0.01)
