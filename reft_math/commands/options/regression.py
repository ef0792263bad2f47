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
    """Options of regression, added to those of all training."""

    output_dir: str = field(default="results/raft", metadata={"help": "Regressor, records and results go here."})
    learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Peak learning rate (2e-4, full 1e-5; on the embedded model 5e-3, full 1e-3).",
        },
    )
    train_size: int | None = field(default=None, metadata={"help": "Maximum training rows, drawn by --seed (all)."})
    seed: int = field(
        default=0,
        metadata={"help": "Seed of the training rows, their order, and random initial weights."},
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
        metadata={"help": "Wording of the data set's texts; the paper's have no prompt around them (--template bare)."},
    )
    loss: str = field(default="raft", metadata={"help": "raft, mbr, ce, log, or head:NAME; see above."})
    tune: Literal["red", "bias", "loreft", "lora", "full"] = field(default="red", metadata={"help": "Part to train."})
    grid: str | None = field(
        default=None,
        metadata={
            "help": "Grid: lower:upper:resolution or a list such as 1,9 (1:5:1; original1 0:9:1; for ce 0:5:0.1 on"
            " stsb, 0:9:0.01 on original1; for scaled targets 0,1)."
        },
    )
    grid_texts: str | None = field(
        default=None, metadata={"help": "Texts of the grid's numbers, such as a,b,c,d,e (decimals)."}
    )
    added_tokens: Literal["zero", "first", "average", "random"] | None = field(
        default=None, metadata={"help": "Give every number of the grid a token of its own, initialised like this (no)."}
    )
    normalised: bool = field(default=False, metadata={"help": "Divide probabilities by their sum over the grid."})
    bounds: str | None = field(
        default=None, metadata={"help": "Least and greatest target, such as 0,5 (the data set's own)."}
    )
    scale_targets: bool = field(
        default=False, metadata={"help": "Scale the loss's targets to bounds 0 and 1; the log loss always does."}
    )
    bidirectional: bool = field(
        default=False, metadata={"help": "Let the prompt's tokens see each other in both directions."}
    )
    random_start: bool = field(default=False, metadata={"help": "Start from random base weights."})
    site: str | None = field(
        default=None,
        metadata={"help": "Site of RED, bias and LoReFT, as in train/prefix_reft.py (ffn_up; block for loreft)."},
    )
    site_path: str | None = field(
        default=None, metadata={"help": "Site by a module's path, in any decoder: model.layers.{layer}.mlp.up_proj."}
    )
    layers: str = field(default="all", metadata={"help": "Layers of RED, bias and LoReFT: all, or 0,2,8-11."})
    rank: int | None = field(default=None, metadata={"help": "Rank of LoReFT (4) or LoRA (8)."})
    optim: Literal["adamw_torch", "adafactor", "sgd"] = field(
        default="adamw_torch", metadata={"help": "Optimiser, by its name in transformers' trainer."}
    )
    dropout: float | None = field(
        default=None, metadata={"help": "Dropout of the model's layers that have it, and of LoRA's (the model's)."}
    )
    schedule: Literal["constant", "cosine"] = field(
        default="constant", metadata={"help": "Schedule of the learning rate after its warm-up."}
    )
    head_learning_rate: float | None = field(
        default=None, metadata={"help": "The head's learning rate (1e-3; on the embedded model 2e-2 for linear ones)."}
    )
    eval_steps: int = field(default=100, metadata={"help": "Optimiser steps between evaluations (and checkpoints)."})
    patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations without a better RMSE (never)."}
    )
    validation_size: int | None = field(default=None, metadata={"help": "Maximum validation rows, drawn (all)."})
    test_size: int | None = field(default=None, metadata={"help": "Maximum test rows, drawn (all)."})
    eval_batch_size: int = field(default=32, metadata={"help": "Rows per batch in evaluation."})
    samples: int = field(default=0, metadata={"help": "Answers drawn per row for RAIL by samples; the paper draws 32."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    default: float = field(default=0.0, metadata={"help": "Value of an answer that is not a number."})

    @property
    def FREE_ON_RESUME(self) -> frozenset[str]:
        """Settings that may change on resume. When sampling, the batch size decides which answers are drawn."""
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
