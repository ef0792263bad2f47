"""The loss of training by reward: its expected gradient, on a model whose prefixes can all be enumerated."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, TrainingArguments

from interventions.gates import kl_divergence
from reft_math.models.adapter import PrefixReftModel, get_prefix_reft_model
from reft_math.models.config import PrefixReftConfig
from reft_math.training.norm_control import NormController
from reft_math.training.policy_gradient import Estimator
from reft_math.training.prefix_policy import Prompts, prefix_logits
from reft_math.training.rl_trainer import PrefixRlTrainer, RewardSettings
from reft_math.training.trainer import NormControl

END = 2
SEQUENCES = torch.tensor([[0, 0], [0, 1], [0, END], [1, 0], [1, 1], [1, END], [END, -100]])
REWARDS = torch.tensor([1, 0, 1, 0, 0, 1, 0], dtype=torch.float64)
PROMPT = [[0, 1, 1, 0]]


@pytest.fixture
def policy(tiny_model: Callable[..., PreTrainedModel]) -> PrefixReftModel:
    base = tiny_model("GPTNeoX", vocab_size=3).double()
    model = get_prefix_reft_model(base, PrefixReftConfig(intervention="bias", site="ffn_up"))
    model.interventions.double()
    generator = torch.Generator().manual_seed(1)
    for bias in model.biases().values():
        bias.data.add_(torch.randn(bias.shape, generator=generator, dtype=torch.float64))
    return model


def make_trainer(
    policy: PrefixReftModel,
    folder: Path,
    kl_weight: float,
    temperature: float = 1.0,
    estimator: Estimator = "rloo",
) -> PrefixRlTrainer:
    trainer = PrefixRlTrainer(
        model=policy,
        args=TrainingArguments(str(folder), use_cpu=True, report_to="none"),
        train_dataset=[],
        norm_control=NormControl(policy, NormController(1.0), None),
        data_collator=lambda rows: {"rows": rows},
        how=RewardSettings(2, 2, temperature, [END], 0, estimator, 0.0, kl_weight),
        rollouts=None,  # type: ignore[arg-type]
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


@pytest.mark.parametrize(
    ("estimator", "factor", "kl_weight", "temperature"),
    [("rloo", 1.0, 0.0, 1.5), ("rloo", 1.0, 0.3, 1.5), ("dr-grpo", 1 / 4, 0.3, 1.0)],
)
def test_expected_gradient_is_that_of_the_objective(
    policy: PrefixReftModel, tmp_path: Path, estimator: Estimator, factor: float, kl_weight: float, temperature: float
) -> None:
    """Under Dr. GRPO times ``(G − 1)/(G·K)``."""
    prompts = Prompts.of(PROMPT, 0, torch.device("cpu"))
    biases = list(policy.biases().values())
    logits = prefix_logits(policy, prompts, SEQUENCES)
    base = prefix_logits(policy, prompts, SEQUENCES, acting=False).detach()
    is_drawn = SEQUENCES != -100
    log_probs = (logits / temperature).log_softmax(-1).gather(-1, SEQUENCES.clamp(min=0)[..., None]).squeeze(-1)
    probabilities = log_probs.where(is_drawn, 0.0).sum(dim=1).exp()
    kl = torch.stack([kl_divergence(logits[:, step], base[:, step]) for step in range(2)], dim=1).where(is_drawn, 0.0)
    assert probabilities.sum().item() == pytest.approx(1)
    exact = torch.autograd.grad((probabilities * (REWARDS - kl_weight * kl.sum(dim=1))).sum(), biases)

    trainer = make_trainer(policy, tmp_path, kl_weight, temperature, estimator)
    expected = [torch.zeros_like(bias) for bias in biases]
    for pair in itertools.product(range(len(SEQUENCES)), repeat=2):
        members = list(pair)
        inputs: Any = {"prompts": prompts, "targets": SEQUENCES[members], "rewards": REWARDS[members]}
        loss = trainer.compute_loss(policy, inputs, num_items_in_batch=2)
        weight = probabilities[members].prod().detach()
        for total, gradient in zip(expected, torch.autograd.grad(loss, biases), strict=True):
            total += weight * gradient
    for found, wanted in zip(expected, exact, strict=True):
        assert wanted.abs().max() > 1e-4
        torch.testing.assert_close(found, -factor * wanted, atol=1e-10, rtol=0)


def test_a_step_notes_what_it_saw(policy: PrefixReftModel, tmp_path: Path) -> None:
    trainer = make_trainer(policy, tmp_path, kl_weight=0.0)
    assert trainer.norm_control is not None
    inputs: Any = {
        "prompts": Prompts.of(PROMPT, 0, torch.device("cpu")),
        "targets": SEQUENCES[[1, 6]],
        "rewards": torch.tensor([1.0, 0.0]),
    }
    trainer.compute_loss(policy, inputs, num_items_in_batch=2)
    noted = {name: float(value) for name, value in trainer.norm_control.losses.items()}
    assert noted["reward"] == 0.5
    assert 0 < noted["kl"] < 2, "so no gate of 2 nats closes"
    assert noted["closing_position"] == (2 + 1) / 2
    assert noted["entropy"] > 0


def test_what_was_drawn_after_a_completions_end_is_no_part_of_it(policy: PrefixReftModel, tmp_path: Path) -> None:
    """A text that stops a completion may lie within the prefix."""
    trainer = make_trainer(policy, tmp_path, kl_weight=0.0)
    records = [{"correct": True, "num_tokens": 1}, {"correct": False, "num_tokens": 5}]
    trainer.rollouts = lambda prefixes: records  # type: ignore[assignment,misc]
    (batch,) = trainer.ready([{"ids": ["a"], "rows": [{"id": "a", "prompt_ids": PROMPT[0], "gold": "1"}]}])
    assert batch["targets"][0, 1] == -100
    assert batch["targets"][1, 0] >= 0
    assert batch["rewards"].tolist() == [1, 0]
