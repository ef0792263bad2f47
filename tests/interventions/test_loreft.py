from __future__ import annotations

import pyreft
import torch

from interventions import LoreftIntervention


def randomised(width: int = 10, rank: int = 3) -> LoreftIntervention:
    torch.manual_seed(0)
    return LoreftIntervention(embed_dim=width, low_rank_dimension=rank)


def test_is_the_formula_in_float64() -> None:
    intervention = randomised()
    rotation = intervention.rotate_layer.weight.detach().double().T
    weight, bias = intervention.learned_source.weight.double(), intervention.bias.double()
    hidden = torch.randn(2, 4, 10).double()
    expected = hidden + (hidden @ weight.T + bias - hidden @ rotation.T) @ rotation
    torch.testing.assert_close(intervention(hidden.float()).double(), expected, rtol=1e-5, atol=1e-6)


def test_equals_pyrefts_class_with_the_same_parameters() -> None:
    ours = randomised()
    theirs = pyreft.LoreftIntervention(embed_dim=10, low_rank_dimension=3, dtype=torch.float32)
    theirs.load_state_dict(
        {**ours.learned_source.state_dict(), "rotate_layer": ours.rotate_layer.weight.detach().clone()}
    )
    hidden = torch.randn(2, 4, 10)
    torch.testing.assert_close(ours(hidden), theirs(hidden), rtol=1e-5, atol=1e-6)


def test_rotation_stays_orthonormal_while_training() -> None:
    intervention = randomised()
    optimizer = torch.optim.Adam(intervention.parameters(), lr=0.1)
    for _ in range(5):
        intervention(torch.randn(8, 10)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    rotation = intervention.rotate_layer.weight.detach()
    torch.testing.assert_close(rotation.T @ rotation, torch.eye(3), rtol=0, atol=1e-5)


def test_bias_norm_is_the_norm_of_its_effect() -> None:
    intervention = randomised()
    effect = intervention.bias @ intervention.rotate_layer.weight.T
    torch.testing.assert_close(effect.norm(), intervention.bias.norm())


def test_computes_in_float32_under_autocast_and_on_bfloat16() -> None:
    intervention = randomised()
    hidden = torch.randn(2, 10, dtype=torch.bfloat16)
    expected = intervention(hidden.float()).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(intervention(hidden), expected)


def test_state_is_small() -> None:
    """Not pyvene's (width, width) base matrix: 2·width·rank + rank numbers."""
    state = randomised(width=10, rank=3).state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == 2 * 10 * 3 + 3
