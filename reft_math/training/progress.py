"""Shows training as one progress bar, with the latest loss and norm."""

from __future__ import annotations

from typing import Any

from transformers import ProgressCallback, Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK, PrinterCallback

from reft_math.commands.progress import progress
from reft_math.training.trainer import NormControl

# Logged values to show, and their labels; ``--report-to`` receives all of them.
_SHOWN = {"loss": "loss", "eval_rmse": "validation RMSE"}


def show_progress(trainer: Trainer, norm_control: NormControl | None = None) -> None:
    """Replaces the trainer's own bar and printed dictionaries by `TrainingProgress`."""
    trainer.remove_callback(DEFAULT_PROGRESS_CALLBACK)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(TrainingProgress(norm_control))


class TrainingProgress(ProgressCallback):
    """A bar over optimiser steps.

    Args:
        norm_control: Callback whose norm is shown beside the loss.
    """

    def __init__(self, norm_control: NormControl | None) -> None:
        super().__init__()
        self.prediction_bar: Any = None
        self.norm_control = norm_control
        self.shown: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.current_step = 0
        if state.is_world_process_zero:
            self.training_bar = progress(name="training", unit="step", total=state.max_steps)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            if self.prediction_bar is None:
                total = len(kwargs["eval_dataloader"])
                self.prediction_bar = progress(name="validation", unit="batch", total=total, leave=False)
            self.prediction_bar.update()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.training_bar is None:
            return
        self.shown |= {_SHOWN[name]: value for name, value in kwargs["logs"].items() if name in _SHOWN}
        if self.norm_control is not None and self.norm_control.trace:
            self.shown["norm"] = self.norm_control.trace["norm"][-1]
        self.training_bar.set_postfix(self.shown, refresh=False)
