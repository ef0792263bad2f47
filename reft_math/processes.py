"""Which of a run's processes this is."""

from __future__ import annotations

import torch
from accelerate import PartialState


def process_state() -> PartialState:
    """accelerate's state; under ``torchrun`` the processes find each other, over gloo where there is no GPU."""
    return PartialState(cpu=not torch.cuda.is_available())
