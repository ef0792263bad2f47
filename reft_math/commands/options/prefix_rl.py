"""Settings of training prefixes by reward. Light to import: ``--help`` waits for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from reft_math.commands.options.engine import EngineOptions
from reft_math.commands.options.prefix import HeldNormOptions
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
    samples: int = field(default=8, metadata={"help": "Prefixes drawn for each problem of a step."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature of the prefixes."})
    estimator: Literal["rloo", "dr-grpo", "grpo"] = field(
        default="rloo",
        metadata={"help": "Advantages: reward less the others' mean, less the group's mean, or that by its spread."},
    )
    token_cost: float = field(
        default=0.0, metadata={"help": "Reward is 1 for a right answer less this for each of its tokens."}
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
        if self.noise:
            raise UserError("--noise is put into solutions, and only answers are trained on; leave it out")
