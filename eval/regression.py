"""Evaluate a model as a regressor: every predictor's RMSE and correlations, with bootstrap intervals.

    uv run eval/regression.py --regressor results/raft/regressor --data original1 --output-dir results/regression
    uv run eval/regression.py --model google/gemma-2-2b-it --data stsb --samples 32    # zero-shot

With ``--regressor`` its base is evaluated beside it, over the same grid, so that the table shows what training changed:
the errors, and the entropy of the grid's probabilities.
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
    regressor: str | None = field(default=None, metadata={"help": "What train/raft.py saved: folder or hub id."})
    base: bool = field(default=True, metadata={"help": "Evaluate the regressor's base as well."})
    model: str | None = field(
        default=None,
        metadata={"help": "A base on its own: hub id, folder, .gguf file, or arithmetic (arithmetic)."},
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of either on the hub."})
    grid: str | None = field(
        default=None, metadata={"help": "A base's numbers, as in train/raft.py (the data set's own, coarse)."}
    )
    template: str | None = field(default=None, metadata={"help": "A base's prompt, as in train/raft.py (auto)."})
    prompt: Literal["ours", "paper"] | None = field(
        default=None, metadata={"help": "A base's wording of the texts, as in train/raft.py (ours)."}
    )
    data: str | None = field(
        default=None, metadata={"help": "As in train/raft.py (what the regressor was trained on; original1)."}
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder with the data's files instead of the hub."})
    split: Literal["validation", "test"] = field(default="test", metadata={"help": "Which rows."})
    limit: int | None = field(default=None, metadata={"help": "Rows at most (all), drawn as train/raft.py draws them."})
    batch_size: int = field(default=32, metadata={"help": "Rows a batch."})
    samples: int = field(default=0, metadata={"help": "Answers drawn a row for RAIL by samples; the paper draws 32."})
    temperature: float = field(default=1.0, metadata={"help": "Of the samples."})
    default: float = field(default=0.0, metadata={"help": "What an answer that is no number counts as."})
    seed: int = field(default=0, metadata={"help": "Of the samples."})
    output_dir: str = field(default="results/regression", metadata={"help": "Records and results go here."})
    resume: bool = field(default=False, metadata={"help": "Go on where a stopped run left off."})
    overwrite: bool = field(default=False, metadata={"help": "Delete the output folder's run and start anew."})

    @property
    def FREE_ON_RESUME(self) -> frozenset[str]:
        """A batch is sampled as a whole: its size decides which answers are drawn."""
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
    from reft_math.regression.evaluate import run_regression_evaluation

    run_regression_evaluation(options)


if __name__ == "__main__":
    run(main, RegressionEvaluationOptions, __doc__)
