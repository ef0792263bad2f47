"""A `transformers.Trainer` that trains prefixes by the reward of the base's completions."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interventions.gates import kl_divergence
from reft_math.data.prefix import IGNORE_INDEX
from reft_math.files.atomic import write_json
from reft_math.training.policy_gradient import Estimator, advantages, cost_losses, policy_losses, token_log_probs
from reft_math.training.prefix_policy import Prompts, draw_prefixes, prefix_logits
from reft_math.training.rollouts import Prefix, Record, Rollouts
from reft_math.training.trainer import PrefixTrainer

VALIDATION_NAME = "validation.json"
THRESHOLD = 2.0  # nats at which the trace's gate closes


@dataclass(frozen=True)
class RewardSettings:
    """How prefixes are drawn and rewarded.

    Attributes:
        k, samples, temperature: Tokens of a prefix, prefixes of a problem, temperature of the draw.
        end_token_ids, pad_token_id: Tokens that end a completion; the token that pads prompts.
        estimator, token_cost, kl_weight: See `policy_gradient` and the command's options.
    """

    k: int
    samples: int
    temperature: float
    end_token_ids: list[int]
    pad_token_id: int
    estimator: Estimator
    token_cost: float
    kl_weight: float


class PrefixRlTrainer(PrefixTrainer):
    """Ascends ``J = E[1(right) − c·tokens − β·Σ_t D_t]`` over prefixes ``y ~ π``; the base writes what follows.

    A step draws G prefixes of each problem from the model with interventions, has the base complete them, and follows
    `policy_gradient`. With ``rloo`` the gradient is unbiased, β's part included: ``∇E[Σ D]`` is
    ``E[Σ D · ∇log π(y)] + E[Σ ∇D]``, and both terms are there.

    Args:
        how: How prefixes are drawn and rewarded.
        rollouts: Completes and scores prefixes.
        **kwargs: `PrefixTrainer`'s. Rows have ``id``, ``prompt_ids`` and ``gold``; ``eval_reward``, without D, and
            ``eval_accuracy`` are those of the rows of ``eval_dataset``, decoded greedily under ``tokens:K``.
    """

    control: Any

    def __init__(self, *args: Any, how: RewardSettings, rollouts: Rollouts, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.how, self.rollouts = how, rollouts

    # --- a step -------------------------------------------------------------------------------------------------

    def ready(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Draws the step's prefixes and rewards them, all batches at once, so that an engine is kept busy."""
        # A step's own seed: a resumed run restores torch's random state only after it has loaded the step's batches.
        generator = torch.Generator(self.args.device)
        generator.manual_seed(zlib.crc32(f"{self.args.seed}/{self.state.global_step}".encode()))
        found = [self._drawn(batch["rows"], self.how.samples, self.how.temperature, generator) for batch in batches]
        records = self.rollouts([prefix for _, _, prefixes in found for prefix in prefixes])
        device = self.args.device
        right = torch.tensor([float(row["correct"]) for row in records], device=device)
        lengths = torch.tensor([float(row["num_tokens"]) for row in records], device=device)
        self._note("right", right.mean())
        self._note("tokens", lengths.mean())
        sizes = [len(prefixes) for _, _, prefixes in found]
        rewards = (right - self.how.token_cost * lengths).split(sizes)
        ends = lengths.long().split(sizes)
        columns = torch.arange(self.how.k, device=device)
        return [
            {
                "ids": batch["ids"],
                "prompts": prompts,
                # A completion may end within its prefix, at a text that stops it: what was drawn after that is no part.
                "targets": tokens.where(columns < end[:, None], IGNORE_INDEX),
                "rewards": reward,
            }
            for batch, (prompts, tokens, _), reward, end in zip(batches, found, rewards, ends, strict=True)
        ]

    def _drawn(
        self,
        rows: Sequence[dict[str, Any]],
        samples: int,
        temperature: float | None,
        generator: torch.Generator | None = None,
    ) -> tuple[Prompts, torch.Tensor, list[Prefix]]:
        """Draws prefixes of a batch of problems: prompts, tokens ``(problem·G, K)``, and the same as rollouts."""
        model = self._policy()
        prompts = Prompts.of([row["prompt_ids"] for row in rows], self.how.pad_token_id, model.device)
        owners = [row for row in rows for _ in range(samples)]
        with self.accelerator.autocast():  # the model itself is not called
            tokens = draw_prefixes(
                model,
                prompts,
                samples,
                self.how.k,
                self.how.end_token_ids,
                temperature,
                generator,
                names=[row["id"] for row in owners],
            )
        drawn = [[token for token in row if token != IGNORE_INDEX] for row in tokens.tolist()]
        prefixes = [
            Prefix(row["id"], row["gold"], row["prompt_ids"], ids) for row, ids in zip(owners, drawn, strict=True)
        ]
        return prompts, tokens, prefixes

    def _policy(self) -> Any:
        """Returns the model, without dropout: prefixes are drawn from the policy that is differentiated."""
        return self.accelerator.unwrap_model(self.model).eval()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        policy, tokens = self._policy(), inputs["targets"]
        is_drawn = tokens != IGNORE_INDEX
        with self.accelerator.autocast():
            logits = prefix_logits(policy, inputs["prompts"], tokens)
            with torch.no_grad():
                base_logits = prefix_logits(policy, inputs["prompts"], tokens, acting=False)
        with torch.set_grad_enabled(self.how.kl_weight > 0):
            kl = kl_divergence(logits.flatten(0, 1), base_logits.flatten(0, 1)).view_as(tokens).where(is_drawn, 0.0)
        log_probs = token_log_probs(logits, tokens, IGNORE_INDEX, self.how.temperature)
        rewards = inputs["rewards"].to(kl) - self.how.kl_weight * kl.detach().sum(dim=1)
        gains = advantages(rewards.view(-1, self.how.samples), self.how.estimator).flatten()
        assert num_items_in_batch is not None  # get_batch_samples
        share = self.share(num_items_in_batch)
        losses = policy_losses(log_probs, is_drawn, gains, self.how.estimator)
        if self.how.kl_weight:
            costs = self.how.kl_weight * kl.sum(dim=1)
            losses = losses + cost_losses(costs, is_drawn, self.how.samples, self.how.estimator)
        self._note("reward", (rewards * share).sum())
        self._note("kl", (kl.sum(dim=1) * share).sum())
        self._note("closing_position", ((kl.cumsum(dim=1) <= THRESHOLD) & is_drawn).sum() * share)
        self._note("entropy", -(log_probs.sum(dim=1) * share).sum())  # its estimate by the drawn prefixes
        loss = (losses * share).sum()
        return self._controlled(loss)

    def _note(self, name: str, value: torch.Tensor) -> None:
        assert self.norm_control is not None
        self.norm_control.note(name, value)

    # --- validation ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        rows: list[dict[str, Any]] = list(self.eval_dataset)
        size = self.args.per_device_eval_batch_size
        prefixes = [
            prefix
            for start in range(0, len(rows), size)
            for prefix in self._drawn(rows[start : start + size], samples=1, temperature=None)[2]
        ]
        records: list[Record] = self.rollouts(prefixes)
        right = sum(record["correct"] for record in records) / len(records)
        tokens = sum(record["num_tokens"] for record in records) / len(records)
        reward = right - self.how.token_cost * tokens
        metrics = {"eval_reward": reward, "eval_accuracy": right, "eval_tokens": tokens}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def validation(self) -> dict[str, Any]:
        """Returns ``steps``, ``accuracy`` and ``tokens`` of the evaluations, and the kept ``best_step``."""
        # By step: a resumed run may reach a step twice.
        entries = {entry["step"]: entry for entry in self.state.log_history if "eval_accuracy" in entry}
        return {
            "steps": list(entries),
            "accuracy": [entry["eval_accuracy"] for entry in entries.values()],
            "tokens": [entry["eval_tokens"] for entry in entries.values()],
            "best_step": self.state.best_global_step,
        }

    def save_adapter(self, folder: Path) -> None:
        """Writes the adapter, and what validation found beside it."""
        self.save_model(str(folder))
        write_json(folder / VALIDATION_NAME, self.validation())

    def _load_best_model(self) -> None:
        """Restores the best step's weights; the trace stays whole."""
        assert self.norm_control is not None
        assert self.state.best_model_checkpoint is not None
        self.norm_control.model.load_weights(self.state.best_model_checkpoint)
