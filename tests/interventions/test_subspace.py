"""What LoReFT and DiReFT share."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from interventions import DireftIntervention, LoreftIntervention
from interventions.subspace import SubspaceIntervention
from reft_math.errors import UserError

HIDDEN = torch.linspace(-2, 2, 80).reshape(2, 4, 10)


def made(kind: type[SubspaceIntervention], act_fn: str | None = None, dropout: float = 0.0) -> SubspaceIntervention:
    torch.manual_seed(0)
    return kind(embed_dim=10, low_rank_dimension=3, act_fn=act_fn, dropout=dropout).eval()


@pytest.mark.parametrize("kind", [LoreftIntervention, DireftIntervention])
def test_the_activation_is_on_what_is_learnt_alone(kind: type[SubspaceIntervention]) -> None:
    intervention = made(kind, "gelu")
    rotation = intervention.rotate_layer.weight.detach()
    kept = HIDDEN @ rotation if kind is LoreftIntervention else 0
    expected = HIDDEN + (F.gelu(intervention.learned_source(HIDDEN)) - kept) @ rotation.T
    torch.testing.assert_close(intervention(HIDDEN), expected, rtol=1e-5, atol=1e-5)


def test_dropout_acts_in_training_only() -> None:
    intervention, plain = made(LoreftIntervention, dropout=0.5), made(LoreftIntervention)
    assert torch.equal(intervention(HIDDEN), plain(HIDDEN))
    dropped = intervention.train()(HIDDEN)
    is_zero = dropped == 0
    assert 0.2 < is_zero.float().mean() < 0.8
    torch.testing.assert_close(dropped[~is_zero], 2 * plain(HIDDEN)[~is_zero])


@pytest.mark.parametrize("kind", [LoreftIntervention, DireftIntervention])
def test_options_go_with_the_state_into_an_intervention_that_was_made_without(
    kind: type[SubspaceIntervention],
) -> None:
    """As stock pyvene makes it."""
    intervention = made(kind, "relu", 0.5)
    loaded = kind(embed_dim=10, low_rank_dimension=3)
    loaded.load_state_dict(intervention.state_dict())
    assert torch.equal(loaded.eval()(HIDDEN), intervention(HIDDEN))
    assert not torch.equal(loaded(HIDDEN), made(kind)(HIDDEN))
    assert loaded.dropout.p == 0.5


def test_a_state_without_options_is_what_it_always_was() -> None:
    names = set(made(LoreftIntervention).state_dict())
    assert names == {"rotate_layer.parametrizations.weight.original", "learned_source.weight", "learned_source.bias"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no JSON", "must hold act_fn and dropout"),
        (b"[1]", "must hold act_fn and dropout"),
        (b'{"act_fn": "relu"}', "must hold act_fn and dropout"),
        (b'{"act_fn": "relu", "dropout": 0.0, "seed": 1}', "must hold act_fn and dropout"),
        (b'{"act_fn": ["relu"], "dropout": 0.0}', "act_fn must be"),
        (b'{"act_fn": "prelu", "dropout": 0.0}', "without parameters.*'prelu'"),
        (b'{"act_fn": "relu", "dropout": 1}', r"dropout must be in \[0, 1\); got 1"),
        (b'{"act_fn": "relu", "dropout": "0"}', r"dropout must be in \[0, 1\); got '0'"),
    ],
)
def test_options_that_mean_nothing_are_refused(data: bytes, message: str) -> None:
    intervention = made(LoreftIntervention)
    state = {**intervention.state_dict(), "options": torch.tensor(list(data), dtype=torch.uint8)}
    with pytest.raises(UserError, match=message):
        intervention.load_state_dict(state)
    with pytest.raises(UserError, match="must hold act_fn and dropout"):
        intervention.load_state_dict({**state, "options": torch.tensor([0.5])})
