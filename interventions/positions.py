"""Where an intervention acts: one definition for training and decoding.

A column of a batch is *prompt* or *generated*: with prompts padded on the left to ``prompt_length`` columns, column
``c`` is generated iff ``c >= prompt_length``. Padding is on no token's path and needs no case of its own.
"""

from __future__ import annotations

from typing import Literal

import torch

Positions = Literal["all", "generated", "prompt"]


def intervention_mask(is_generated: torch.Tensor, positions: Positions) -> torch.Tensor:
    """True where an intervention acts.

    Args:
        is_generated: Boolean, any shape; True at tokens of the solution, False at the prompt's.
        positions: Which of the two the intervention acts on.
    """
    if positions == "all":
        return torch.ones_like(is_generated)
    return is_generated if positions == "generated" else ~is_generated
