"""Arguments of `transformers.Trainer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from reft_math.commands.options.training import FittingOptions
from reft_math.errors import UserError


def check_precision(options: FittingOptions) -> None:
    """Raises `UserError` for float16 autocast without a GPU, which accelerate would silently skip."""
    if options.mixed_precision == "fp16" and not (torch.cuda.is_available() or options.dry_run):
        raise UserError("--mixed-precision fp16 needs a GPU, and there is none; take bf16, or leave it out")


def training_arguments(options: FittingOptions, folder: Path, **settings: Any) -> TrainingArguments:
    """Returns the trainer's arguments: one device per process, no weight decay; ``settings`` override the options."""
    assert options.learning_rate is not None  # resolved
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup_ratio,
        # Decay would pull RED's scales to 0 and its biases off the held norm.
        weight_decay=0.0,
        max_grad_norm=1.0,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulation,
        bf16=options.mixed_precision == "bf16",
        fp16=options.mixed_precision == "fp16",
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=options.seed,
        logging_steps=20,
        logging_nan_inf_filter=False,  # it would replace the loss; RowTrainer stops instead
        report_to=options.report_to,
        remove_unused_columns=False,
        # Renamed in transformers 5.23, which warns about the old name: passed only if requested.
        **({"gradient_checkpointing": True} if options.gradient_checkpointing else {}),
        **{"lr_scheduler_type": "cosine", **settings},
    )
    # One device per process: the trainer would spread a single process over all visible GPUs by DataParallel, to whose
    # replicas the hooks do not extend. For several GPUs use torchrun.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    # The option decides and is recorded; accelerate's launcher sets a precision in the environment.
    arguments.mixed_precision = options.mixed_precision
    return arguments
