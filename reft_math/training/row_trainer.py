"""A `transformers.Trainer` that counts rows and stops at NaN and infinity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate.utils import gather_object, reduce
from torch import nn
from transformers import Trainer

from interventions.logits import watching
from reft_math.errors import UserError
from reft_math.files.tensors import not_finite
from reft_math.training.checkpoints import newest_whole


@dataclass(frozen=True)
class _WithIds:
    """A collator that adds the rows' ``ids`` to each batch."""

    collate: Callable[[Sequence[Mapping[str, Any]]], dict[str, torch.Tensor]]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {**self.collate(rows), "ids": [row["id"] for row in rows]}


class RowTrainer(Trainer):
    """Trains on the mean loss over the rows of an optimiser step, and stops at NaN and infinity.

    The rows of all its accumulated batches and processes are counted, so any split of a batch gives the same gradient.
    (With several processes accelerate fills the epoch's last batch with rows seen before.)

    Rows have an ``id``. Losses and the gradient's norm are checked once per step, before the update. If one is NaN or
    infinite, the step's batches are read again to find the first such place, which a `UserError` names. Weights are
    checked before each checkpoint: only finite ones are written.
    """

    # Losses are already divided by the number of rows of the whole step. Set twice: transformers 5.17 asks the model.
    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True
        self.data_collator: Any = _WithIds(self.data_collator)
        self._batches: list[dict[str, Any]] = []
        self._losses: list[torch.Tensor] = []

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        batches = self.ready(batches)
        self._batches, self._losses = batches, []
        num_rows = torch.tensor(sum(len(batch["targets"]) for batch in batches), device=device)
        return batches, self.accelerator.gather(num_rows).sum()

    def ready(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Makes an optimiser step's batches, as collated, into those that `compute_loss` takes."""
        return batches

    def share(self, num_rows: torch.Tensor | int) -> torch.Tensor | float:
        """Returns a row's weight. Gradients are averaged over processes, each with its own share of the rows."""
        share: torch.Tensor | float = self.accelerator.num_processes / num_rows
        return share

    # --- NaN and infinity ---------------------------------------------------------------------------------------

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self._losses.append(loss)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | None = None) -> torch.Tensor:
        norm: torch.Tensor = super()._get_grad_norm(model, grad_norm)
        finite = torch.stack([torch.stack(self._losses).sum(), norm.to(self._losses[0])]).isfinite()
        # Each process has its own losses; all stop together.
        is_loss_finite, is_norm_finite = (share == 1 for share in reduce(finite.float(), "mean").tolist())
        if not (is_loss_finite and (is_norm_finite or self._is_scaled_up())):
            self._stop()
        return norm

    def _is_scaled_up(self) -> bool:
        """Whether float16's gradients are of a scaled loss: the step is skipped, and the next one scaled up less."""
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() > 1

    def _stop(self) -> NoReturn:
        """Raises `UserError` with the first place, in any process, where the step has NaN or infinity."""
        for look in (self._weights, self._outputs, self._gradients):
            # All processes run the same passes over as many batches: each pass exchanges parts of a sharded base.
            places = gather_object([(look(batch), batch["ids"]) for batch in self._batches])
            if found := next(((place, ids) for place, ids in places if place), None):
                self._raise(self.state.global_step + 1, *found)
        ids = gather_object([row for batch in self._batches for row in batch["ids"]])
        self._raise(self.state.global_step + 1, "loss or gradient, in the first pass but not in a second,", ids)

    def _raise(self, step: int, place: str, ids: Sequence[str]) -> NoReturn:
        last = newest_whole(Path(str(self.args.output_dir)))
        kept = "there is no earlier checkpoint" if last is None else f"the last good checkpoint is {last}"
        raise UserError(
            f"training needs finite numbers; at step {step} the {place} is NaN or infinite (batch: {', '.join(ids)})."
            f" Nothing of that step is saved; {kept}. Look at the rows, or start anew with a lower --learning-rate or"
            " --dtype float32, and --overwrite"
        )

    def _weights(self, batch: dict[str, Any]) -> str | None:
        bad = not_finite(self._trained())
        return f"weight {bad[0]}" if bad else None

    @torch.no_grad()
    def _outputs(self, batch: dict[str, Any]) -> str | None:
        with watching(self.model) as bad:
            loss = self._loss(batch)
        if bad:
            return f"output of {bad[0]}"
        return None if loss.isfinite() else "loss"

    def _gradients(self, batch: dict[str, Any]) -> str | None:
        trained = self._trained()
        gradients = torch.autograd.grad(self._loss(batch), list(trained.values()), allow_unused=True)
        named = zip(trained, gradients, strict=True)
        bad = not_finite({name: gradient for name, gradient in named if gradient is not None})
        return f"gradient of {bad[-1]}" if bad else None  # backward order: the last one is the origin

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def _loss(self, batch: dict[str, Any]) -> torch.Tensor:
        with self.compute_loss_context_manager():
            loss: torch.Tensor = self.compute_loss(
                self.model, self._prepare_inputs(batch), num_items_in_batch=len(batch["targets"])
            )
        return loss

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if bad := not_finite(self._trained()):
            ids = gather_object([row for batch in self._batches for row in batch["ids"]])
            self._raise(self.state.global_step, f"weight {bad[0]}, as the step left it,", ids)
        super()._save_checkpoint(model, trial)
