"""Which of a run's processes this is."""

from __future__ import annotations

import torch
from accelerate import PartialState


def process_state() -> PartialState:
    """accelerate's state; under ``torchrun`` the processes find each other, over gloo where there is no GPU."""
    return PartialState(cpu=not torch.cuda.is_available())


def part_ways() -> bool:
    """Ends what the processes do together; true in the main process, which goes on alone.

    All leave the group at once: a process that exits while another still holds its connection may abort, and
    ``torchrun`` would take the rest of the run down with it.
    """
    state = process_state()
    state.wait_for_everyone()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return bool(state.is_main_process)
