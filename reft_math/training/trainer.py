"""A `transformers.Trainer` for prefix training with the bias norm held."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import reduce
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from interventions.norms import mean_norm, project_mean_norm, remove_directions
from reft_math.files.atomic import write_json
from reft_math.training.loss import sequence_cross_entropy
from reft_math.training.norm_control import NormController
from reft_math.training.number_loss import NumberLoss, number_loss
from reft_math.training.packing import logits_at
from reft_math.training.row_trainer import RowTrainer

if TYPE_CHECKING:
    from reft_math.models.adapter import PrefixReftModel
    from reft_math.training.prompt_cache import PromptCache

NORM_CONTROL_NAME = "norm_control.json"


class NormControl(TrainerCallback):
    """Calls a controller around every optimiser step and records the trace.

    Args:
        model: Model whose norms are controlled.
        controller: Controller of the norm.
        target_scale_norm: Upper bound of ``mean_l ‖s_l − 1‖₂``; None leaves the scales free.
        directions: Unit vectors, one per bias, that biases are kept off; None leaves them free.
        unit: ``u``; biases are trained as ``b = u·β``, by β's gradient and at its learning rate.

    Attributes:
        trace: One list per column, one entry per optimiser step: ``step``, ``norm`` (mean ‖b_l‖₂), ``scale_norm`` (mean
            ‖s_l − 1‖₂), ``scale_max`` (max |s − 1|), ``loss_weight``, ``step_scale``, and the unweighted losses
            ``cross_entropy`` and, with a loss on numbers, ``number_loss``.
    """

    def __init__(
        self,
        model: PrefixReftModel,
        controller: NormController,
        target_scale_norm: float | None,
        directions: Sequence[torch.Tensor] | None = None,
        unit: float = 1.0,
    ) -> None:
        self.model = model
        self.controller = controller
        self.target_scale_norm = target_scale_norm
        self.directions = directions
        self.unit = unit
        self.losses: dict[str, torch.Tensor] = {}
        self.trace: dict[str, list[float]] = {}
        self._learning_rates: list[float] = []

    def note(self, name: str, loss: torch.Tensor) -> None:
        """Adds a batch's share to the step's loss of that name. It is summed on the device and read once per step."""
        self.losses[name] = self.losses.get(name, torch.zeros_like(loss)) + loss.detach()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        groups = kwargs["optimizer"].param_groups
        self._learning_rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] *= self.controller.step_scale

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for group, learning_rate in zip(kwargs["optimizer"].param_groups, self._learning_rates, strict=True):
            group["lr"] = learning_rate  # the scheduler continues from its own value
        applied = {"loss_weight": self.controller.loss_weight, "step_scale": self.controller.step_scale}
        biases = list(self.model.biases().values())
        if self.directions is not None:
            remove_directions(biases, self.directions)
        self.controller.after_step(biases)
        with torch.no_grad():
            self._hold_scales()
            shifts = [scale - 1 for scale in self.model.scales().values()]
            entry = {
                "step": state.global_step + 1,
                "norm": float(mean_norm(biases)),
                "scale_norm": float(mean_norm(shifts)),
                "scale_max": max((float(shift.abs().max()) for shift in shifts), default=0.0),
                **applied,
                **{name: float(reduce(loss, "mean")) for name, loss in self.losses.items()},
            }
        self.losses = {}
        for name, value in entry.items():
            self.trace.setdefault(name, []).append(value)

    def _hold_scales(self) -> None:
        scales = list(self.model.scales().values())
        if self.target_scale_norm is None or not scales:
            return
        shifts = [scale - 1 for scale in scales]
        project_mean_norm(shifts, self.target_scale_norm)
        for scale, shift in zip(scales, shifts, strict=True):
            scale.copy_(1 + shift)

    def save(self, folder: str | Path) -> None:
        state = {"controller": self.controller.name, "state": self.controller.state_dict(), "trace": self.trace}
        write_json(Path(folder) / NORM_CONTROL_NAME, state)

    def load(self, folder: str | Path) -> None:
        state = json.loads((Path(folder) / NORM_CONTROL_NAME).read_text(encoding="utf-8"))
        self.controller.load_state_dict(state["state"])
        self.trace = state["trace"]


def train_in_units(optimizer: torch.optim.Optimizer, biases: Sequence[torch.Tensor], unit: float) -> None:
    """Trains ``b = u·β``: the optimiser sees β's gradients, ``∂L/∂β = u·∂L/∂b``, and moves b by u times β's steps.

    It scales gradients, so that clipping and Adam's eps mean the same whatever u is.
    """
    for bias in biases:
        bias.register_hook(lambda gradient: gradient * unit)
    names = {id(bias) for bias in biases}
    for group in tuple(optimizer.param_groups):
        moved = [parameter for parameter in group["params"] if id(parameter) in names]
        if moved:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in names]
            optimizer.add_param_group({**group, "params": moved, "lr": unit * group["lr"]})


class PrefixTrainer(RowTrainer):
    """Minimises ``L = w_t · (mean_i CE_i + λ · mean_i N_i) + penalty``, means over all sequences of an optimiser step.

    Without ``norm_control`` it trains any causal language model on the same batches; with ``prompt_cache`` on those of
    `reft_math.training.prompt_cache.BehindPrompts`.
    """

    def __init__(
        self,
        *args: Any,
        norm_control: NormControl | None = None,
        number_loss: NumberLoss | None = None,
        prompt_cache: PromptCache | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.norm_control, self.number_loss, self.prompt_cache = norm_control, number_loss, prompt_cache
        if norm_control is not None:
            self.add_callback(norm_control)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        is_new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        if self.norm_control is not None and self.norm_control.unit != 1 and is_new:
            train_in_units(optimizer, list(self.norm_control.model.biases().values()), self.norm_control.unit)
        return optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        inputs.pop("ids")
        targets = inputs.pop("targets")
        if self.prompt_cache is not None:
            with self.accelerator.autocast():  # as around the model itself
                inputs |= self.prompt_cache.before(inputs.pop("prompts"), inputs["attention_mask"])
        with logits_at(self.accelerator.unwrap_model(model), inputs.pop("logits_at")):
            outputs = model(**inputs, use_cache=False)
        losses = sequence_cross_entropy(outputs.logits, targets)
        assert num_items_in_batch is not None  # get_batch_samples
        share = self.share(num_items_in_batch)
        loss = self._noted("cross_entropy", losses.sum() * share)
        if self.number_loss is not None:
            rows = number_loss(outputs.logits, targets, self.number_loss.tokens, self.number_loss.objective)
            loss = loss + self.number_loss.weight * self._noted("number_loss", rows.sum() * share)
        if self.norm_control is not None:
            loss = self._controlled(loss)
        return (loss, outputs) if return_outputs else loss

    def _noted(self, name: str, loss: torch.Tensor) -> torch.Tensor:
        if self.norm_control is not None:
            self.norm_control.note(name, loss)
        return loss

    def _controlled(self, losses: torch.Tensor) -> torch.Tensor:
        assert self.norm_control is not None
        controller = self.norm_control.controller
        penalty = controller.penalty(list(self.norm_control.model.biases().values()))
        # The penalty belongs to the step, not a batch: each batch adds its share.
        penalty = penalty / self.current_gradient_accumulation_steps
        loss: torch.Tensor = controller.loss_weight * losses + penalty
        return loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.norm_control is None:
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.norm_control.model.save_pretrained(folder)
            self.norm_control.save(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.norm_control is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.norm_control.model.load_weights(resume_from_checkpoint)
            self.norm_control.load(resume_from_checkpoint)
