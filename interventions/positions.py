"""Defines where an intervention acts, for training and decoding alike.

A token's *place* is its distance from the solution's first token: 0 and more for generated tokens, −1 for the prompt's
last token, less for those before it. With prompts padded on the left to ``prompt_length`` columns the place of column
``c`` is ``c − prompt_length``. No token attends to padding, so padding needs no case of its own.

| positions   | acts at places | the first generated token is drawn by        |
| ----------- | -------------- | -------------------------------------------- |
| `all`       | all            | the intervened model                         |
| `solution`  | −1 and more    | the intervened model, behind the base's cache |
| `generated` | 0 and more     | the base                                     |
| `prompt`    | below 0        | the intervened model                         |
"""

from __future__ import annotations

from typing import Literal

import torch

Positions = Literal["all", "solution", "generated", "prompt"]
BEHIND_PROMPTS: tuple[Positions, ...] = ("solution", "generated")  # leave the cache of a prompt's other tokens alone


def intervention_mask(place: torch.Tensor, positions: Positions) -> torch.Tensor:
    """Returns a mask that is true where an intervention acts.

    Args:
        place: Whole numbers, any shape; see above.
        positions: The tokens that the intervention acts on.
    """
    if positions == "all":
        return torch.ones_like(place, dtype=torch.bool)
    if positions == "prompt":
        return place < 0
    return place >= (-1 if positions == "solution" else 0)
