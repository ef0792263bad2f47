"""Settings of all training commands. Light to import: ``--help`` waits for it."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from reft_math.commands.options.loading import LoadingOptions
from reft_math.errors import UserError, require, require_seed

LAYER = "{layer}"  # stands for a layer's number in the path of a module
ELEMENTWISE = ("red", "bias")  # interventions whose b has the site's width; b of the others has their rank's


def check_site_path(site: str | None, site_path: str | None) -> None:
    """Raises `UserError` if a site is given twice, or by a path without a layer."""
    if site is not None and site_path is not None:
        raise UserError(f"--site and --site-path exclude each other; got {site} and {site_path}")
    if site_path is not None and LAYER not in site_path:
        raise UserError(
            f"--site-path must hold {LAYER} for the layer's number, as in model.layers.{LAYER}.mlp.up_proj;"
            f" got {site_path}"
        )


@dataclass(frozen=True)
class FittingOptions(LoadingOptions):
    """Options of all training: model, optimisation and output folder.

    If a default depends on other settings, the field is None and the command fills it in; the run uses the resolved
    value and writes it beside the results.
    """

    LEARNING_RATE: ClassVar[float] = 2e-4
    ARITHMETIC_RATE: ClassVar[float] = 5e-3

    model: str = field(
        default="arithmetic", metadata={"help": "Base: hub id, folder, .gguf file, or the embedded 'arithmetic'."}
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model on the hub."})
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder with <dataset>/<split>.jsonl instead of the hub."}
    )
    template: str = field(
        default="auto",
        metadata={
            "help": "Prompt: chat, plain, either with -step-by-step or -boxed, chat… also with -thinking; auto is chat"
            " if the tokenizer has one."
        },
    )
    train_size: int | None = field(default=None, metadata={"help": "Maximum training problems (all; arithmetic 2048)."})

    epochs: float = field(default=3.0, metadata={"help": "Passes over the training problems."})
    learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of AdamW, cosine decay (2e-4; arithmetic 5e-3)."}
    )
    batch_size: int = field(default=16, metadata={"help": "Training problems per batch and process."})
    accumulation: int = field(default=1, metadata={"help": "Batches per optimiser step."})
    warmup_ratio: float = field(default=0.03, metadata={"help": "Share of steps for the learning rate's warm-up."})
    mixed_precision: Literal["no", "bf16", "fp16"] = field(
        default="no", metadata={"help": "Autocast of the base's forward pass; fp16 is for GPUs."}
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "Recompute activations instead of keeping them."}
    )
    seed: int = field(
        default=0,
        metadata={"help": "Seed of the data's order, arithmetic's problems and noise, and LoReFT's initial weights."},
    )
    report_to: Literal["none", "tensorboard", "trackio", "wandb"] = field(
        default="none", metadata={"help": "Service that receives the training curves."}
    )

    output_dir: str = field(default="results/run", metadata={"help": "Everything the run writes goes here."})
    resume: bool = field(default=False, metadata={"help": "Resume a stopped run."})
    overwrite: bool = field(default=False, metadata={"help": "Delete the run in the output folder and start over."})
    dry_run: bool = field(
        default=False, metadata={"help": "Print what the run would do and needs; run and write nothing."}
    )

    @property
    def rows_per_batch(self) -> int:
        """Number of rows that a batch holds in memory."""
        return self.batch_size

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("train_size", "batch_size", "accumulation"):
            require(self, name, lambda value: value is None or value >= 1, "at least 1")
        for name in ("epochs", "learning_rate"):
            require(self, name, lambda value: value is None or 0 < value < math.inf, "positive")
        require_seed(self)
        require(self, "warmup_ratio", lambda value: 0 <= value < 1, "in [0, 1)")
        if self.report_to != "none" and importlib.util.find_spec(self.report_to) is None:
            raise UserError(
                f"--report-to {self.report_to} needs the package {self.report_to}, which is not installed:"
                f" uv sync --extra {self.report_to}"
            )


@dataclass(frozen=True)
class TrainingOptions(FittingOptions):
    """Adds problems and their evaluation to `FittingOptions`."""

    FREE_ON_RESUME: ClassVar[frozenset[str]] = frozenset({"eval_batch_size"})
    NOISE: ClassVar[float] = 0.5  # default of `noise` on arithmetic

    dataset: str = field(
        default="arithmetic",
        metadata={"help": "arithmetic, gsm8k, math10k, or your own .json/.jsonl file."},
    )
    eval_dataset: str | None = field(
        default=None,
        metadata={"help": "Data set to choose the gate and report results on (held-out rows of the training set)."},
    )
    noise: float | None = field(
        default=None,
        metadata={"help": "Share of arithmetic's training solutions with one wrong step (0.5); arithmetic only."},
    )
    save_steps: int = field(default=200, metadata={"help": "Optimiser steps between checkpoints."})
    eval_size: int = field(
        default=500, metadata={"help": "Maximum number of held-out test problems; 0 trains and does not evaluate."}
    )
    eval_batch_size: int | None = field(
        default=None, metadata={"help": "Problems per batch in evaluation (16; arithmetic 100)."}
    )
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "Longest completion (512; arithmetic 80, math500 1024)."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "eval_size", lambda value: value >= 0, "0 or more")
        for name in ("save_steps", "eval_batch_size", "max_new_tokens"):
            require(self, name, lambda value: value is None or value >= 1, "at least 1")
        require(self, "noise", lambda value: value is None or 0 <= value <= 1, "in [0, 1]")
        if self.noise is not None and self.dataset != "arithmetic":
            raise UserError(f"--noise is put into arithmetic's solutions only; leave it out for {self.dataset}")
