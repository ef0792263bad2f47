from __future__ import annotations

import pytest
import torch

from interventions import BiasIntervention


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_is_the_formula_added_in_float32_and_given_back_in_the_dtype_of_what_it_edits(dtype: torch.dtype) -> None:
    """A bias of 1e-4 survives in float32, where bfloat16 would keep it at 9.97e-5."""
    torch.manual_seed(0)
    intervention, hidden = BiasIntervention(embed_dim=6), torch.randn(2, 3, 6, dtype=dtype)
    assert torch.equal(intervention(hidden), hidden)
    with torch.no_grad():
        intervention.bias += 1e-4
    expected = (hidden.double() + intervention.bias.double()).to(torch.promote_types(dtype, torch.float32)).to(dtype)
    assert intervention.bias.dtype == torch.float32
    assert torch.equal(intervention(hidden), expected)


def test_width_can_come_later_as_pyvene_does_it_on_loading() -> None:
    late, now = BiasIntervention(embed_dim=None), BiasIntervention(embed_dim=6)
    late.set_interchange_dim(6)
    late.load_state_dict(now.state_dict())
    assert set(late.state_dict()) == {"bias"}
