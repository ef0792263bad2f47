"""A `transformers.Trainer` for regressors: the step with the lowest RMSE on validation rows is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
)

from reft_math.commands.options.regression import RegressionOptions
from reft_math.data.regression_rows import RegressionRow
from reft_math.errors import UserError
from reft_math.files.atomic import atomic_path, write_json
from reft_math.regression.batches import RegressionCollator, encode_rows
from reft_math.regression.metrics import rmse
from reft_math.regression.regressor import Regressor
from reft_math.training.arguments import training_arguments
from reft_math.training.checkpoints import BestCheckpoint, Checksums, last_checkpoint
from reft_math.training.progress import show_progress
from reft_math.training.row_trainer import RowTrainer

WEIGHTS_NAME, TRACE_NAME = "trainable.safetensors", "training.json"


class RegressionTrainer(RowTrainer):
    """Trains a `Regressor` on the mean of its rows' losses; checkpoints hold only trainable parameters.

    Args:
        head_learning_rate: Learning rate of the head's weights; None for that of the rest.
        **kwargs: The trainer's arguments. ``eval_rmse`` is on the data's scale, by the predictor that the loss trains.

    Attributes:
        start_rmse: RMSE on the validation rows before any training.
    """

    model: Regressor

    def __init__(self, *args: Any, head_learning_rate: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, compute_metrics=self._rmse)
        self.head_learning_rate = head_learning_rate
        self.start_rmse = math.nan

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        parameters = self.model.trainable_parameters()
        head = {name for name in parameters if name.startswith("head.")}
        rates = {True: self.head_learning_rate or self.args.learning_rate, False: self.args.learning_rate}
        groups = [
            {"params": members, "lr": rate, "weight_decay": self.args.weight_decay}
            for is_head, rate in rates.items()
            if (members := [value for name, value in parameters.items() if (name in head) == is_head])
        ]
        kind, settings = self.get_optimizer_cls_and_kwargs(self.args)
        optimizer: torch.optim.Optimizer = kind(groups, **settings)
        self.optimizer = optimizer
        return optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        inputs.pop("ids")
        outputs = model(**inputs)
        rows = outputs["loss"]
        loss = rows.mean() if num_items_in_batch is None else rows.sum() * self.share(num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _rmse(self, found: EvalPrediction) -> dict[str, float]:
        errors = np.asarray(found.predictions, dtype=np.float64) - np.asarray(found.label_ids, dtype=np.float64)
        if len(bad := np.flatnonzero(~np.isfinite(errors))):
            raise UserError(
                f"predictions must be finite; after step {self.state.global_step} that of validation row"
                f" {self.eval_dataset[int(bad[0])]['id']} is NaN or infinite: start anew with a lower --learning-rate"
                " or --dtype float32, and --overwrite"
            )
        return {"rmse": float(np.sqrt(np.mean(errors**2)))}

    def save_regressor(self, folder: Path) -> None:
        """Writes the regressor, and the trace of training beside it."""
        self.model.save_pretrained(folder)
        write_json(folder / TRACE_NAME, self.trace())

    def trace(self) -> dict[str, Any]:
        """Returns ``steps`` and ``rmse`` of the evaluations, from step 0, and ``best_step`` among the saved ones."""
        evaluated = {0: self.start_rmse}  # by step: a resumed run may reach a step twice
        evaluated |= {entry["step"]: entry["eval_rmse"] for entry in self.state.log_history if "eval_rmse" in entry}
        return {
            "steps": list(evaluated),
            "rmse": list(evaluated.values()),
            "best_step": self.state.best_global_step,
            "trained_parameters": sum(value.numel() for value in self.model.trainable_parameters().values()),
        }

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            parameters = self.model.trainable_parameters()
            tensors = {name: value.detach().contiguous().cpu() for name, value in parameters.items()}
            with atomic_path(folder / WEIGHTS_NAME) as aside:
                save_file(tensors, aside, metadata={"format": "pt"})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        tensors = load_file(Path(resume_from_checkpoint) / WEIGHTS_NAME)
        with torch.no_grad():
            for name, parameter in self.model.trainable_parameters().items():
                parameter.copy_(tensors[name])

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        self._load_from_checkpoint(self.state.best_model_checkpoint)


def fit(
    regressor: Regressor,
    train: Sequence[RegressionRow],
    validation: Sequence[RegressionRow],
    options: RegressionOptions,
    folder: Path,
) -> RegressionTrainer:
    """Trains, in a resumed run from the folder's last checkpoint, and restores the best step."""
    tokenizer, template = regressor.tokenizer, regressor.template
    arguments = training_arguments(
        options,
        folder,
        optim=options.optim,
        lr_scheduler_type="constant_with_warmup" if options.schedule == "constant" else "cosine",
        eval_strategy="steps",
        eval_steps=options.eval_steps,
        save_steps=options.eval_steps,
        per_device_eval_batch_size=options.eval_batch_size,
        load_best_model_at_end=True,
        metric_for_best_model="eval_rmse",
        greater_is_better=False,
        label_names=["targets"],
        restore_callback_states_from_checkpoint=True,
        # A head that does not read the model's logits gives its output embedding no gradient, and a one-token number
        # that no prompt contains gives its row of the input embedding none.
        ddp_find_unused_parameters=regressor.added_rows is not None
        or (regressor.head is not None and regressor.head.needs_hidden),
    )
    early = [] if options.patience is None else [EarlyStoppingCallback(options.patience)]
    trainer = RegressionTrainer(
        model=regressor,
        args=arguments,
        train_dataset=encode_rows(train, tokenizer, template),
        eval_dataset=encode_rows(validation, tokenizer, template),
        data_collator=RegressionCollator(int(tokenizer.pad_token_id)),
        head_learning_rate=options.head_learning_rate,
        callbacks=[BestCheckpoint(), Checksums(), *early],
    )
    # Not by trainer.evaluate: accelerate would consider the model prepared, and leave it out of DDP in training.
    start = regressor.predict([row.text for row in validation], options.eval_batch_size)
    trainer.start_rmse = rmse(start, [row.target for row in validation])
    show_progress(trainer)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder) if options.resume else None)
    return trainer
