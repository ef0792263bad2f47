from __future__ import annotations

import pytest
import torch

from interventions import RedIntervention


def randomised(width: int) -> RedIntervention:
    torch.manual_seed(0)
    intervention = RedIntervention(embed_dim=width)
    with torch.no_grad():
        intervention.scale.normal_()
        intervention.bias.normal_()
    return intervention


def test_is_the_formula_in_float64() -> None:
    intervention = randomised(6)
    hidden = torch.randn(2, 3, 6)
    expected = intervention.scale.double() * hidden.double() + intervention.bias.double()
    torch.testing.assert_close(intervention(hidden).double(), expected, rtol=1e-6, atol=1e-6)


def test_fresh_changes_nothing() -> None:
    hidden = torch.randn(2, 3, 6)
    assert torch.equal(RedIntervention(embed_dim=6)(hidden), hidden)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_and_arithmetic_stay_float32_on_a_base_of_lower_precision(dtype: torch.dtype) -> None:
    """A step of 1e-4 on a scale of 1 is lost in bfloat16; here it survives."""
    intervention = RedIntervention(embed_dim=1)
    with torch.no_grad():
        intervention.scale += 1e-4
    assert intervention.scale.dtype == torch.float32
    assert intervention.scale.item() == pytest.approx(1.0001)
    output = intervention(torch.ones(1, 1, 1, dtype=dtype))
    assert output.dtype == dtype


def test_width_can_come_later_as_pyvene_does_it_on_loading() -> None:
    late, now = RedIntervention(embed_dim=None), RedIntervention(embed_dim=6)
    late.set_interchange_dim(6)
    late.load_state_dict(now.state_dict())
    assert set(late.state_dict()) == {"scale", "bias"}
