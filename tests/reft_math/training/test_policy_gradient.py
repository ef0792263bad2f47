"""Estimators of the policy gradient, each against the gradient of the exact expectation."""

from __future__ import annotations

import itertools

import pytest
import torch

from reft_math.training.policy_gradient import Estimator, advantages, policy_losses, token_log_probs

VOCABULARY, K, END = 3, 2, 2
SEQUENCES = torch.tensor([[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [END, -100]])


def toy(parameters: torch.Tensor) -> torch.Tensor:
    """Logits ``(sequence, K, vocabulary)`` of a policy whose second token depends on the first."""
    second = parameters[1:][SEQUENCES[:, 0].clamp(max=1)]
    return torch.stack([parameters[:1].expand(len(SEQUENCES), -1), second], dim=1)


@pytest.fixture
def parameters() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(3, VOCABULARY, dtype=torch.float64, generator=generator).requires_grad_()


REWARDS = torch.tensor([1, 0, 1, 0, 0.5, 1, 0], dtype=torch.float64)


def expected_gradient(
    parameters: torch.Tensor, estimator: Estimator, rewards: torch.Tensor, group: int
) -> torch.Tensor:
    """The mean of the estimator's gradient over all groups of prefixes, each weighted by its probability."""
    probabilities = token_log_probs(toy(parameters), SEQUENCES, -100).sum(dim=1).exp().detach()
    total = torch.zeros_like(parameters)
    for members in itertools.product(range(len(SEQUENCES)), repeat=group):
        chosen = list(members)
        log_probs = token_log_probs(toy(parameters)[chosen], SEQUENCES[chosen], -100)
        gains = advantages(rewards[chosen][None], estimator).flatten()
        loss = policy_losses(log_probs, SEQUENCES[chosen] != -100, gains, estimator).mean()
        (gradient,) = torch.autograd.grad(loss, parameters)
        total += probabilities[chosen].prod() * gradient
    return total


@pytest.mark.parametrize(("estimator", "factor"), [("rloo", 1.0), ("dr-grpo", 2 / 3 / K)])
def test_expected_gradient_is_that_of_the_expected_reward(
    parameters: torch.Tensor, estimator: Estimator, factor: float
) -> None:
    probabilities = token_log_probs(toy(parameters), SEQUENCES, -100).sum(dim=1).exp()
    assert probabilities.sum().item() == pytest.approx(1)
    (exact,) = torch.autograd.grad((probabilities * REWARDS).sum(), parameters)
    found = expected_gradient(parameters, estimator, REWARDS, group=3)
    torch.testing.assert_close(found, -factor * exact, atol=1e-12, rtol=0)


def test_grpo_is_biased_as_documented(parameters: torch.Tensor) -> None:
    probabilities = token_log_probs(toy(parameters), SEQUENCES, -100).sum(dim=1).exp()
    (exact,) = torch.autograd.grad((probabilities * REWARDS).sum(), parameters)
    found = -expected_gradient(parameters, "grpo", REWARDS, group=3)
    assert torch.nn.functional.cosine_similarity(found.flatten(), exact.flatten(), dim=0) < 0.999


@pytest.mark.parametrize("estimator", ["rloo", "dr-grpo", "grpo"])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1 + 0.2])
def test_equal_rewards_move_nothing(parameters: torch.Tensor, estimator: Estimator, reward: float) -> None:
    gradient = expected_gradient(parameters, estimator, torch.full_like(REWARDS, reward), group=3)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_advantages() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.3, 0.3, 0.3, 0.3]])
    none = [0.0] * 4
    assert advantages(rewards, "dr-grpo").tolist() == [[0.5, -0.5, -0.5, 0.5], none]
    assert advantages(rewards, "grpo").tolist() == [[1.0, -1.0, -1.0, 1.0], none]
    torch.testing.assert_close(advantages(rewards, "rloo")[0], torch.tensor([2.0, -2.0, -2.0, 2.0]) / 3)
    others = rewards[0].sum() - rewards[0]
    torch.testing.assert_close(advantages(rewards, "rloo")[0], rewards[0] - others / 3)


def test_weights_by_length() -> None:
    log_probs = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, 0.0, 0.0]])
    is_drawn = torch.tensor([[True, True, True], [True, False, False]])
    gains = torch.tensor([1.0, -1.0])
    assert policy_losses(log_probs, is_drawn, gains, "rloo").tolist() == [6, -4]
    assert policy_losses(log_probs, is_drawn, gains, "dr-grpo").tolist() == pytest.approx([2, -4 / 3])
    assert policy_losses(log_probs, is_drawn, gains, "grpo").tolist() == [2, -4]


def test_half_precision_is_widened_before_it_is_divided() -> None:
    logits = torch.tensor([[[20.0, 0.1, -3.3]]], dtype=torch.bfloat16)
    tokens = torch.tensor([[1]])
    expected = (logits.double() / 0.7).log_softmax(dim=-1)[0, 0, 1]
    assert token_log_probs(logits, tokens, -100, temperature=0.7).item() == pytest.approx(expected.item(), rel=1e-6)
