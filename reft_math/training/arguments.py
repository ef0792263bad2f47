"""What goes to `transformers.Trainer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from reft_math.commands.options.training import FittingOptions
from reft_math.errors import UserError


def check_precision(options: FittingOptions) -> None:
    """Raises `UserError` for float16 autocast without a GPU, where accelerate would leave it out and say nothing."""
    if options.mixed_precision == "fp16" and not (torch.cuda.is_available() or options.dry_run):
        raise UserError("--mixed-precision fp16 needs a GPU, and there is none; take bf16, or leave it out")


def training_arguments(options: FittingOptions, folder: Path, **settings: Any) -> TrainingArguments:
    """The options, one device a process, no weight decay; ``settings`` come on top."""
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
        logging_nan_inf_filter=False,  # would put another loss in its place; RowTrainer stops there
        report_to=options.report_to,
        remove_unused_columns=False,
        # Renamed in transformers 5.23, which warns of the old name: passed only where asked for.
        **({"gradient_checkpointing": True} if options.gradient_checkpointing else {}),
        **{"lr_scheduler_type": "cosine", **settings},
    )
    # One process, one device: the trainer would spread a single process over all visible GPUs by DataParallel, whose
    # replicas the hooks do not follow. Several GPUs are torchrun's.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    # The option's to say, and recorded as such; accelerate's launcher names one in the environment.
    arguments.mixed_precision = options.mixed_precision
    return arguments
