"""Settings of training prefixes by reward. Light to import: ``--help`` waits for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from reft_math.commands.options.engine import EngineOptions
from reft_math.commands.options.prefix import HeldNormOptions
from reft_math.commands.options.training import TrainingOptions
from reft_math.errors import UserError, require, require_one_process


@dataclass(frozen=True)
class PrefixRlOptions(HeldNormOptions, EngineOptions):
    """Options of one run on answers alone."""

    LEARNING_RATE: ClassVar[float] = 2e-3
    ARITHMETIC_RATE: ClassVar[float] = 1e-2
    NOISE: ClassVar[float] = 0.0
    FREE_ON_RESUME: ClassVar[frozenset[str]] = HeldNormOptions.FREE_ON_RESUME | {
        *("engine", "engine_model", "engine_concurrency", "engine_timeout")
    }

    output_dir: str = field(default="results/prefix-rl", metadata={"help": "Adapter, records and results go here."})
    epochs: float = field(default=0.5, metadata={"help": "Passes over the training problems."})
    k: int = field(default=10, metadata={"help": "Tokens of a solution to draw and train on."})
    learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of AdamW, cosine decay (2e-3; arithmetic 1e-2)."}
    )
    engine: str | None = field(
        default=None,
        metadata={"help": "Server with the base (http://host:port/v1) that completes prefixes in training."},
    )
    samples: int = field(default=8, metadata={"help": "Prefixes drawn for each problem of a step."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature of the prefixes."})
    estimator: Literal["rloo", "dr-grpo", "grpo"] = field(
        default="rloo",
        metadata={
            "help": "Advantage: reward less the mean of the group's others (rloo), less the group's mean (dr-grpo), or"
            " the latter divided by the group's spread (grpo)."
        },
    )
    token_cost: float = field(
        default=0.0,
        metadata={"help": "Reward is 1 if right, else 0, less this for each token of the answer, right or wrong."},
    )
    kl_weight: float = field(
        default=0.0, metadata={"help": "Reward less this for each nat of the prefix's divergence from the base."}
    )
    eval_steps: int = field(default=10, metadata={"help": "Optimiser steps between two looks at validation problems."})
    validation_size: int = field(
        default=100, metadata={"help": "Maximum number of validation problems to choose the step by."}
    )

    @property
    def rows_per_batch(self) -> int:
        return self.batch_size * self.samples

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_process("prefixes trained by reward")
        require(self, "samples", lambda value: value >= 2, "at least 2, to compare rewards within a group")
        require(self, "temperature", lambda value: 0 < value < math.inf, "positive")
        for name in ("token_cost", "kl_weight"):
            require(self, name, lambda value: 0 <= value < math.inf, "0 or more")
        for name in ("eval_steps", "validation_size"):
            require(self, name, lambda value: value >= 1, "at least 1")
        if self.gradient_checkpointing:
            raise UserError("--gradient-checkpointing recomputes layers, which do not read a cache then; leave it out")
        if self.save_steps != TrainingOptions.save_steps:
            raise UserError("--eval-steps is also the number of steps between checkpoints; leave --save-steps out")
        if self.noise:
            raise UserError("--noise is put into solutions, and only answers are trained on; leave it out")
