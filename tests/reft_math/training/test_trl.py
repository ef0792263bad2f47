"""Adapters in TRL's trainers, against the formula of RED written out on the base, a row at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from interventions import PrefixReftConfig, PrefixReftModel, get_prefix_reft_model
from interventions.positions import Positions, intervention_mask
from reft_math.data.arithmetic.problems import arithmetic_problems
from reft_math.data.arithmetic.tokenizer import build_tokenizer
from reft_math.errors import UserError
from reft_math.training.trl import TrlModel

ONE_PLAIN_STEP = {"max_steps": 1, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "save_strategy": "no"}
PROBLEMS = arithmetic_problems("train", 8, noise=0.0)
SOLVED = Dataset.from_list([{"prompt": problem.question, "completion": problem.solution} for problem in PROBLEMS])
ASKED = SOLVED.remove_columns("completion")


@pytest.fixture(autouse=True)
def trl() -> None:
    pytest.importorskip("trl", reason="trl is not installed (uv sync --extra trl)")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture
def adapter(
    tiny_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> Callable[..., PrefixReftModel]:
    """``adapter(**config)``: RED off its start, on a model with the embedded tokenizer's vocabulary."""

    def build(**config: Any) -> PrefixReftModel:
        reft_model = get_prefix_reft_model(tiny_model(vocab_size=len(tokenizer)), PrefixReftConfig(**config))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in reft_model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        return reft_model

    return build


def make_trainer(kind: str, reft_model: PrefixReftModel, folder: Path, data: Dataset, **settings: Any) -> Any:
    import trl

    rewards = {"reward_funcs": settings.pop("reward")} if kind == "GRPO" else {}
    arguments = {"report_to": "none", "bf16": False, "use_cpu": True, "dataloader_pin_memory": False, **settings}
    return getattr(trl, f"{kind}Trainer")(
        TrlModel(reft_model),
        args=getattr(trl, f"{kind}Config")(str(folder), disable_tqdm=True, logging_steps=1, **arguments),
        train_dataset=data,
        processing_class=build_tokenizer(),
        **rewards,
    )


def copies(reft_model: PrefixReftModel) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in reft_model.parameters()]


def log_probs(reft_model: PrefixReftModel, prompt: Sequence[int], completion: Sequence[int]) -> torch.Tensor:
    """``log p(y_t | x, y_<t)`` of the base with ``s ⊙ h + b`` at the up-projections, by hooks of its own."""
    tokens = torch.tensor([[*prompt, *completion]])
    acts = intervention_mask(torch.arange(tokens.shape[1]) - len(prompt), reft_model.positions)[:, None]
    scales, biases = reft_model.scales(), reft_model.biases()
    handles = [
        layer.mlp.up_proj.register_forward_hook(
            lambda module, args, h, n=number: torch.where(acts, scales[n] * h + biases[n], h)
        )
        for number, layer in enumerate(reft_model.model.model.layers)
    ]
    logits = reft_model.model(tokens, use_cache=False).logits[0, len(prompt) - 1 : -1]
    for handle in handles:
        handle.remove()
    return logits.log_softmax(-1).gather(1, tokens[0, len(prompt) :, None])[:, 0]


def assert_reloads(reft_model: PrefixReftModel, folder: Path, base: PreTrainedModel) -> None:
    """The saved folder gives the trained logits, and the trained model's base is the untrained one to the bit."""
    for name, weight in base.named_parameters():
        assert torch.equal(weight, reft_model.model.get_parameter(name)), name
    loaded = PrefixReftModel.from_pretrained(folder, base)
    tokens = torch.arange(3, 13)[None]
    mask = (torch.arange(10) >= 4)[None]
    expected = reft_model.eval()(tokens, intervention_mask=mask).logits
    assert torch.equal(loaded(tokens, intervention_mask=mask).logits, expected)
    assert not torch.allclose(base(tokens).logits, expected)


@pytest.mark.parametrize("positions", ["all", "solution", "generated", "prompt"])
def test_sft_takes_the_mean_gradient_of_all_completion_tokens(
    adapter: Callable[..., PrefixReftModel],
    tiny_model: Callable[..., PreTrainedModel],
    tmp_path: Path,
    positions: Positions,
) -> None:
    reft_model = adapter(positions=positions)
    trainer = make_trainer("SFT", reft_model, tmp_path, SOLVED, per_device_train_batch_size=8, **ONE_PLAIN_STEP)
    rows = []
    for row in trainer.train_dataset:
        start = next(column for column, label in enumerate(row["labels"]) if label != -100)
        rows.append(log_probs(reft_model, row["input_ids"][:start], row["input_ids"][start:]))
    loss = -torch.cat(rows).mean()
    gradients = torch.autograd.grad(loss, list(reft_model.parameters()))
    before = copies(reft_model)

    assert trainer.train().training_loss == pytest.approx(loss.item(), rel=1e-5)
    for old, gradient, new in zip(before, gradients, reft_model.parameters(), strict=True):
        torch.testing.assert_close(old - new, gradient, rtol=1e-4, atol=1e-6)
    trainer.save_model()
    assert_reloads(reft_model, tmp_path, tiny_model(vocab_size=len(trainer.processing_class)))


@pytest.mark.parametrize("positions", ["all", "solution", "generated", "prompt"])
def test_grpo_takes_the_policy_gradient_of_the_intervened_models_completions(
    adapter: Callable[..., PrefixReftModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    positions: Positions,
) -> None:
    """``−(1/n) Σ_i A_i (1/T_i) Σ_t ∇ log p(y_t)``, ``A = (r − mean r)/(std r + 1e-4)`` over a prompt's four."""
    drawn: list[tuple[list[int], list[int], float]] = []

    def reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        rewards = [float(sum(tokens) % 7) for tokens in completion_ids]
        drawn.extend(zip(tokenizer(prompts)["input_ids"], completion_ids, rewards, strict=True))
        return rewards

    reft_model = adapter(positions=positions)
    settings = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 6}
    trainer = make_trainer(
        "GRPO", reft_model, tmp_path, ASKED, reward=reward, loss_type="grpo", **settings, **ONE_PLAIN_STEP
    )
    before = copies(reft_model)
    trainer.train()
    moves = [old - new for old, new in zip(before, reft_model.parameters(), strict=True)]
    reft_model.eval()  # recomputes no activations, as TRL's trainers do by default
    with torch.no_grad():
        for parameter, old in zip(reft_model.parameters(), before, strict=True):
            parameter.copy_(old)
    rewards = torch.tensor([reward for *_, reward in drawn]).view(-1, 4)
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    means = torch.stack([log_probs(reft_model, prompt, completion).mean() for prompt, completion, _ in drawn])
    gradients = torch.autograd.grad(-(advantages.flatten() * means).mean(), list(reft_model.parameters()))
    assert len({len(prompt) for prompt, *_ in drawn}) > 1  # some are padded
    for move, gradient in zip(moves, gradients, strict=True):
        torch.testing.assert_close(move, gradient, rtol=1e-4, atol=1e-6)


def test_grpo_raises_the_reward(
    adapter: Callable[..., PrefixReftModel],
    tiny_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    """The share of even tokens; with a KL to the base, which takes no second model."""

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [sum(token % 2 == 0 for token in tokens) / len(tokens) for tokens in completion_ids]

    reft_model = adapter(intervention="bias", site="block", positions="generated")
    settings = {"per_device_train_batch_size": 64, "num_generations": 32, "max_completion_length": 4, "beta": 1e-3}
    trainer = make_trainer(
        "GRPO", reft_model, tmp_path, ASKED, reward=reward, max_steps=10, learning_rate=0.5, **settings
    )
    trainer.train()
    trainer.save_model()
    logged = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert sum(entry["reward"] for entry in logged[-3:]) / 3 > logged[0]["reward"] + 0.1
    assert logged[0]["kl"] > 0  # the adapter is off its start, and the reference is the base
    assert trainer.ref_model is None
    assert_reloads(reft_model, tmp_path, tiny_model(vocab_size=len(tokenizer)))


def test_rollouts_are_the_intervened_models(
    adapter: Callable[..., PrefixReftModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    reft_model = adapter(gate="tokens:1")
    model = TrlModel(reft_model)
    prompts = dict(tokenizer(["7", "48+13="], return_tensors="pt", padding=True, padding_side="left"))
    settings = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    always, base = (reft_model.generate(**prompts, gate=gate, **settings) for gate in ("always", "off"))
    drawn = model.generate(**prompts, **settings)
    assert torch.equal(torch.stack(drawn.logits), torch.stack(always.logits))
    with model.disable_adapter():
        drawn = model.generate(**prompts, **settings)
        logits = model(**prompts, labels=prompts["input_ids"]).logits
    assert torch.equal(torch.stack(drawn.logits), torch.stack(base.logits))
    assert torch.equal(logits, reft_model.model(**prompts).logits)
    assert not torch.equal(model(**prompts).logits, logits)


def test_a_run_resumes_from_a_checkpoint(adapter: Callable[..., PrefixReftModel], tmp_path: Path) -> None:
    ends = []
    for folder, checkpoint in (("whole", None), ("again", tmp_path / "whole" / "checkpoint-2")):
        reft_model = adapter(positions="generated")
        settings = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2}
        make_trainer("SFT", reft_model, tmp_path / folder, SOLVED, **settings).train(checkpoint and str(checkpoint))
        ends.append(copies(reft_model))
    assert all(torch.equal(whole, again) for whole, again in zip(*ends, strict=True))


def test_other_ways_of_drawing_are_refused(adapter: Callable[..., PrefixReftModel]) -> None:
    model = TrlModel(adapter())
    with pytest.raises(UserError, match=r"use_transformers_continuous_batching .* without the interventions"):
        model.generate_batch([[1, 2]])
    with pytest.raises(UserError, match=r"use_vllm .* without the interventions"):
        model.merge_adapter()
