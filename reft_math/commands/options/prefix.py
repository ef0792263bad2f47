"""Settings of prefix training. Light to import: ``--help`` waits for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from reft_math.commands.options.training import ELEMENTWISE, TrainingOptions, check_site_path
from reft_math.errors import UserError, require


@dataclass(frozen=True)
class InterventionOptions(TrainingOptions):
    """Options of interventions that start a solution, added to those of every training command."""

    k: int = field(default=10, metadata={"help": "Solution tokens to train on."})
    norm_control: Literal["pid", "note", "projection", "penalty", "step-size", "none", "loss-weight"] = field(
        default="pid",
        metadata={
            "help": "Controller of the norm: pid rescales the biases, projection bounds them, step-size and penalty act"
            " on their training, note (or loss-weight) is the authors' PID on the loss, none leaves them free."
        },
    )
    target_scale_norm: float | None = field(
        default=None, metadata={"help": "Hold the mean over layers of ‖s − 1‖₂ at or under this (RED)."}
    )
    intervention: Literal["red", "bias", "loreft", "direft"] = field(
        default="red", metadata={"help": "Kind of intervention."}
    )
    site: str | None = field(
        default=None,
        metadata={
            "help": "Site: ffn_up, ffn_down, attn_q, attn_k, attn_v, attn_o or block (ffn_up; LoReFT, DiReFT: block)."
        },
    )
    site_path: str | None = field(
        default=None,
        metadata={"help": "Site by a module's path instead, in any decoder: model.layers.{layer}.mlp.up_proj."},
    )
    layers: str = field(default="all", metadata={"help": "Layers: all, or numbers and ranges such as 0,2,8-11."})
    positions: Literal["all", "solution", "generated", "prompt"] = field(
        default="all",
        metadata={
            "help": "Tokens to act on: all, the prompt's last and generated ones (solution), generated ones, or prompt."
        },
    )
    rank: int | None = field(default=None, metadata={"help": "LoReFT's and DiReFT's rank (4)."})
    gate: str | None = field(
        default=None,
        metadata={
            "help": "The adapter's default gate: kl:NATS (also kl:NATS,min=N,max=N), tokens:N, always, prompt or off."
            " Left out: chosen on validation problems, tokens:K under --no-calibrate-gate, always for ordinary ReFT."
        },
    )
    calibrate_gate: bool = field(
        default=True,
        metadata={
            "help": "Choose the default gate, one of kl:0.25,min=1 to kl:16,min=1, by accuracy on the validation split."
        },
    )
    calibration_size: int = field(default=200, metadata={"help": "Maximum number of validation problems."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_site_path(self.site, self.site_path)
        require(self, "k", lambda value: value >= 1, "at least 1")
        require(self, "calibration_size", lambda value: value >= 1, "at least 1")
        require(self, "target_scale_norm", lambda value: value is None or 0 < value < math.inf, "positive")

    @property
    def is_ordinary(self) -> bool:
        """Whether training is on whole solutions: ordinary ReFT."""
        return False


@dataclass(frozen=True)
class PrefixOptions(InterventionOptions):
    """Options of training on given solutions except the norm."""

    FREE_ON_RESUME: ClassVar[frozenset[str]] = InterventionOptions.FREE_ON_RESUME | {"prompt_cache"}

    full_fraction: float = field(
        default=0.0, metadata={"help": "Share of the rows that keep the whole solution; 1 is ordinary ReFT."}
    )
    numeric_weight: float = field(
        default=0.0,
        metadata={"help": "λ of L = w·(CE + λ·N); N is a loss on numbers: near misses cost less than far ones."},
    )
    numeric_objective: Literal["ntl", "raft"] = field(
        default="ntl",
        metadata={"help": "N: squared error of the expected value of each number token, or of each whole number."},
    )
    prompt_cache: float = field(
        default=4.0,
        metadata={
            "help": "GiB of memory, in each process, for keys and values of prompts, which are read once with"
            " --positions solution or generated; 0 reads prompts in every step."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "full_fraction", lambda value: 0 <= value <= 1, "in [0, 1]")
        for name in ("numeric_weight", "prompt_cache"):
            require(self, name, lambda value: 0 <= value < math.inf, "0 or more")

    @property
    def is_ordinary(self) -> bool:
        return self.full_fraction == 1


@dataclass(frozen=True)
class HeldNormOptions(InterventionOptions):
    """Adds the norm of one run to `InterventionOptions`."""

    target_norm: float | None = field(
        default=None, metadata={"help": "Set point of the bias norm, mean over layers of ‖b‖₂ (0.54, Llama-3's)."}
    )
    relative_target_norm: float | None = field(
        default=None,
        metadata={
            "help": "Set point in units of the site's own activations (‖h‖, median over the prompts' tokens); the"
            " biases' learning rate is in these units, too."
        },
    )
    project_number_direction: bool = field(
        default=False,
        metadata={"help": "Project every bias off the direction along which its layer encodes numbers (RED, bias)."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("target_norm", "relative_target_norm"):
            require(self, name, lambda value: value is None or 0 < value < math.inf, "positive")
        if self.target_norm is not None and self.relative_target_norm is not None:
            raise UserError(
                "--target-norm and --relative-target-norm exclude each other;"
                f" got {self.target_norm} and {self.relative_target_norm}"
            )
        check_number_direction(self, self.project_number_direction)


@dataclass(frozen=True)
class PrefixReftOptions(HeldNormOptions, PrefixOptions):
    """Options of one run on given solutions."""

    output_dir: str = field(default="results/prefix-reft", metadata={"help": "Adapter, records and results go here."})


def check_number_direction(options: InterventionOptions, project: bool) -> None:
    """Refuses LoReFT and DiReFT: their b lies in a learnt subspace of R, so no direction of the layer applies to it."""
    if project and options.intervention not in ELEMENTWISE:
        raise UserError(
            f"--project-number-direction is for red and bias, whose b is the layer's; got {options.intervention}"
        )
