from __future__ import annotations

import pytest
import torch

from interventions.positions import Positions, intervention_mask

PLACE = torch.tensor([[-2, -1, 0], [-1, 0, 1]])


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ("all", [[True, True, True], [True, True, True]]),
        ("solution", [[False, True, True], [True, True, True]]),
        ("generated", [[False, False, True], [False, True, True]]),
        ("prompt", [[True, True, False], [True, False, False]]),
    ],
)
def test_where_an_intervention_acts(positions: Positions, expected: list[list[bool]]) -> None:
    mask = intervention_mask(PLACE, positions)
    assert mask.dtype == torch.bool
    assert mask.tolist() == expected


@pytest.mark.parametrize("shape", [(0,), (1, 0), (5,), (2, 3, 4)])
def test_any_shape_is_kept_and_prompt_and_generated_make_up_all(shape: tuple[int, ...]) -> None:
    place = torch.arange(torch.Size(shape).numel()).view(shape) - 2
    prompt, generated = intervention_mask(place, "prompt"), intervention_mask(place, "generated")
    assert prompt.shape == generated.shape == torch.Size(shape)
    assert torch.equal(prompt ^ generated, intervention_mask(place, "all"))
