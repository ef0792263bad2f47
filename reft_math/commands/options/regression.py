"""Settings of `train/raft.py`. Light to import: ``--help`` waits for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from reft_math.commands.options.training import FittingOptions, check_site_path
from reft_math.errors import UserError, require, require_temperature

GRIDLESS = [f"head:{name}" for name in ("logit", "mean", "min", "max", "mlp", "probabilities", "relish")]


@dataclass(frozen=True)
class RegressionOptions(FittingOptions):
    """Options of regression, after those that everything trained has."""

    output_dir: str = field(default="results/raft", metadata={"help": "Regressor, records and results go here."})
    learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Peak (2e-4, full 1e-5; on the embedded model 5e-3, full 1e-3).",
        },
    )
    train_size: int | None = field(default=None, metadata={"help": "Training rows at most (all), drawn by --seed."})
    seed: int = field(
        default=0,
        metadata={"help": "Draws the training rows and their order, and weights that start random."},
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder with the data's files instead of the hub."})
    data: str = field(
        default="original1",
        metadata={
            "help": "original1, stsb, stsb:paper (its split), amazon:wireless, amazon:personal_care, amazon:music,"
            " movielens, or a .csv or .jsonl file with text and target."
        },
    )
    prompt: Literal["ours", "paper"] = field(
        default="ours",
        metadata={"help": "Wording of the data set's texts; the paper's stand without a frame (--template bare)."},
    )
    loss: str = field(default="raft", metadata={"help": "raft, mbr, ce, log, or head:NAME; see above."})
    tune: Literal["red", "bias", "loreft", "lora", "full"] = field(default="red", metadata={"help": "What is trained."})
    grid: str | None = field(
        default=None,
        metadata={
            "help": "Numbers: lower:upper:resolution or a list such as 1,9 (1:5:1; original1 0:9:1; for ce 0:5:0.1 on"
            " stsb, 0:9:0.01 on original1; for scaled targets 0,1)."
        },
    )
    grid_texts: str | None = field(
        default=None, metadata={"help": "What the grid's numbers are written as, such as a,b,c,d,e (decimals)."}
    )
    added_tokens: Literal["zero", "first", "average", "random"] | None = field(
        default=None, metadata={"help": "Give every number of the grid a token of its own, with this start (no)."}
    )
    normalised: bool = field(default=False, metadata={"help": "Divide probabilities by their sum over the grid."})
    bounds: str | None = field(
        default=None, metadata={"help": "Least and greatest target, such as 0,5 (the data set's own)."}
    )
    scale_targets: bool = field(
        default=False, metadata={"help": "Let the loss see the bounds as 0 and 1; always so for the log loss."}
    )
    bidirectional: bool = field(
        default=False, metadata={"help": "Let the prompt's tokens see each other in both directions."}
    )
    random_start: bool = field(default=False, metadata={"help": "Draw the base's weights anew."})
    site: str | None = field(
        default=None,
        metadata={"help": "Where RED, bias and LoReFT act, as in train/prefix_reft.py (ffn_up; block for loreft)."},
    )
    site_path: str | None = field(
        default=None, metadata={"help": "The same by a module's path: model.layers.{layer}.mlp.up_proj; any decoder's."}
    )
    layers: str = field(default="all", metadata={"help": "RED, bias and LoReFT: all, or such as 0,2,8-11."})
    rank: int | None = field(default=None, metadata={"help": "LoReFT's (4) or LoRA's (8)."})
    optim: Literal["adamw_torch", "adafactor", "sgd"] = field(
        default="adamw_torch", metadata={"help": "The optimiser, as transformers' trainer calls it."}
    )
    dropout: float | None = field(
        default=None, metadata={"help": "Of the model's layers that have one, and of LoRA's, in training (its own)."}
    )
    schedule: Literal["constant", "cosine"] = field(
        default="constant", metadata={"help": "Of the learning rate, after its warm-up."}
    )
    head_learning_rate: float | None = field(
        default=None, metadata={"help": "The head's (1e-3; on the embedded model 2e-2 for linear ones)."}
    )
    eval_steps: int = field(default=100, metadata={"help": "Optimiser steps between evaluations, and checkpoints."})
    patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better RMSE (never)."}
    )
    validation_size: int | None = field(default=None, metadata={"help": "Validation rows at most (all), drawn."})
    test_size: int | None = field(default=None, metadata={"help": "Test rows at most (all), drawn."})
    eval_batch_size: int = field(default=32, metadata={"help": "Rows a batch in evaluation."})
    samples: int = field(default=0, metadata={"help": "Answers drawn a row for RAIL by samples; the paper draws 32."})
    temperature: float = field(default=1.0, metadata={"help": "Of the samples."})
    default: float = field(default=0.0, metadata={"help": "What an answer that is no number counts as."})

    @property
    def FREE_ON_RESUME(self) -> frozenset[str]:
        """A batch is sampled as a whole: its size decides which answers are drawn."""
        return frozenset() if self.samples else frozenset({"eval_batch_size"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rank", "eval_steps", "patience", "eval_batch_size"):
            require(self, name, lambda value: value is None or value >= 1, "at least 1")
        for name in ("validation_size", "test_size"):
            require(self, name, lambda value: value is None or value >= 2, "at least 2")
        require(self, "samples", lambda value: value >= 0, "0 or more")
        require(self, "default", math.isfinite, "finite")
        require(self, "dropout", lambda value: value is None or 0 <= value < 1, "in [0, 1)")
        require_temperature(self)
        require(self, "head_learning_rate", lambda value: value is None or 0 < value < math.inf, "positive")
        if self.head_learning_rate is not None and not self.loss.startswith("head:"):
            raise UserError(f"--head-learning-rate is a head's; --loss {self.loss} has none: leave it out")
        if self.loss in GRIDLESS:
            for name in ("grid", "grid_texts", "added_tokens"):
                if getattr(self, name) is not None:
                    raise UserError(
                        f"--{name.replace('_', '-')} is for grids; --loss {self.loss} reads none: leave it out"
                    )
        if self.samples and (self.loss.startswith("head:") or self.bidirectional):
            what = "bidirectional prompts" if self.bidirectional else "a head"
            raise UserError(f"--samples are answers written out; {what} writes none: leave it out")
        if self.rank is not None and self.tune not in ("loreft", "lora"):
            raise UserError(f"--rank is LoReFT's or LoRA's; leave it out for --tune {self.tune}")
        check_site_path(self.site, self.site_path)
        places = self.site or self.site_path
        if self.tune in ("lora", "full") and (places is not None or self.layers != "all"):
            raise UserError(
                f"--site, --site-path and --layers are for interventions; leave them out for --tune {self.tune}"
            )
