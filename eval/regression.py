"""Evaluate a model as a regressor: RMSE and correlations of every predictor, with bootstrap intervals.

    uv run eval/regression.py --regressor results/raft/regressor --data original1 --output-dir results/regression
    uv run eval/regression.py --model google/gemma-2-2b-it --data stsb --samples 32    # zero-shot

With ``--regressor`` its base is evaluated too, over the same grid, so that the table shows how training changed the
errors and the entropy of the grid's probabilities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from reft_math.commands.options.loading import LoadingOptions
from reft_math.commands.run import run
from reft_math.errors import UserError, require, require_temperature


@dataclass(frozen=True)
class RegressionEvaluationOptions(LoadingOptions):
    regressor: str | None = field(default=None, metadata={"help": "Regressor of train/raft.py: folder or hub id."})
    base: bool = field(default=True, metadata={"help": "Evaluate the regressor's base as well."})
    model: str | None = field(
        default=None,
        metadata={"help": "Base to evaluate alone: hub id, folder, .gguf file, or arithmetic (arithmetic)."},
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model on the hub."})
    grid: str | None = field(
        default=None, metadata={"help": "Grid of a base, as in train/raft.py (the data set's own, coarse)."}
    )
    template: str | None = field(default=None, metadata={"help": "Prompt of a base, as in train/raft.py (auto)."})
    prompt: Literal["ours", "paper"] | None = field(
        default=None, metadata={"help": "Wording of a base's texts, as in train/raft.py (ours)."}
    )
    data: str | None = field(
        default=None, metadata={"help": "Data set, as in train/raft.py (the regressor's training set; original1)."}
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder with the data's files instead of the hub."})
    split: Literal["validation", "test"] = field(default="test", metadata={"help": "Which rows."})
    limit: int | None = field(default=None, metadata={"help": "Maximum rows, drawn as in train/raft.py (all)."})
    batch_size: int = field(default=32, metadata={"help": "Rows per batch."})
    samples: int = field(default=0, metadata={"help": "Answers drawn per row for RAIL by samples; the paper draws 32."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    default: float = field(default=0.0, metadata={"help": "Value of an answer that is not a number."})
    seed: int = field(default=0, metadata={"help": "Seed of the samples' random draws."})
    output_dir: str = field(default="results/regression", metadata={"help": "Records and results go here."})
    resume: bool = field(default=False, metadata={"help": "Resume a stopped run."})
    overwrite: bool = field(default=False, metadata={"help": "Delete the run in the output folder and start over."})

    @property
    def FREE_ON_RESUME(self) -> frozenset[str]:
        """Settings that may change on resume. When sampling, the batch size decides which answers are drawn."""
        return frozenset() if self.samples else frozenset({"batch_size"})

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "batch_size", lambda value: value >= 1, "at least 1")
        require(self, "limit", lambda value: value is None or value >= 2, "at least 2")
        require(self, "samples", lambda value: value >= 0, "0 or more")
        require_temperature(self)
        require(self, "default", math.isfinite, "finite")
        given = [name for name in ("model", "grid", "template", "prompt") if getattr(self, name) is not None]
        if self.regressor is not None and given:
            raise UserError(f"--{given[0]} is for a base on its own; the regressor has one: leave one of the two out")


def main(options: RegressionEvaluationOptions) -> None:
    from reft_math.regression.evaluation import run_regression_evaluation

    run_regression_evaluation(options)


if __name__ == "__main__":
    run(main, RegressionEvaluationOptions, __doc__)
