from __future__ import annotations

import pyreft
import torch

from interventions import DireftIntervention


def randomised() -> DireftIntervention:
    torch.manual_seed(0)
    return DireftIntervention(embed_dim=10, low_rank_dimension=3)


def test_is_the_formula_in_float64() -> None:
    intervention = randomised()
    rotation = intervention.rotate_layer.weight.detach().double().T
    weight, bias = intervention.learned_source.weight.double(), intervention.bias.double()
    hidden = torch.randn(2, 4, 10).double()
    expected = hidden + (hidden @ weight.T + bias) @ rotation
    torch.testing.assert_close(intervention(hidden.float()).double(), expected, rtol=1e-5, atol=1e-6)


def test_equals_pyrefts_class_with_the_same_parameters() -> None:
    ours = randomised()
    theirs = pyreft.DireftIntervention(embed_dim=10, low_rank_dimension=3, dtype=torch.float32)
    theirs.learned_source.load_state_dict(ours.learned_source.state_dict())
    theirs.rotate_layer.weight = ours.rotate_layer.weight.detach().clone()
    hidden = torch.randn(2, 4, 10)
    torch.testing.assert_close(ours(hidden), theirs(hidden), rtol=1e-5, atol=1e-6)
