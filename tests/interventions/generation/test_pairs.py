"""What a batch in pairs is made of; the whole of it is held to its definition in `test_generation_definition`."""

from __future__ import annotations

import torch

from interventions.pairs import _select


def test_what_has_a_row_for_each_of_the_batch_goes_with_its_rows_and_the_rest_stays() -> None:
    rows = torch.tensor([0, 1, 2, 2])
    assert _select(torch.tensor([5, 6, 7]), rows, 3).tolist() == [5, 6, 7, 7]
    assert _select(torch.eye(3), rows, 3).shape == (4, 3)
    for whole in (torch.tensor(3), torch.ones(2, 3), "text", None):
        assert _select(whole, rows, 3) is whole
