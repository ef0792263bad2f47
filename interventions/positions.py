"""Defines where an intervention acts, for training and decoding alike.

A column of a batch is *prompt* or *generated*: with prompts padded on the left to ``prompt_length`` columns, column
``c`` is generated iff ``c >= prompt_length``. No token attends to padding, so padding needs no case of its own.
"""

from __future__ import annotations

from typing import Literal

import torch

Positions = Literal["all", "generated", "prompt"]


def intervention_mask(is_generated: torch.Tensor, positions: Positions) -> torch.Tensor:
    """Returns a mask that is true where an intervention acts.

    Args:
        is_generated: Boolean, any shape; True at tokens of the solution, False at the prompt's.
        positions: The tokens that the intervention acts on.
    """
    if positions == "all":
        return torch.ones_like(is_generated)
    return is_generated if positions == "generated" else ~is_generated
