"""Resolves settings and writes results for `train/raft.py`."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from interventions.sites import num_layers
from reft_math.commands.options.regression import GRIDLESS, RegressionOptions
from reft_math.commands.output_folder import RESULTS_NAME, check_claim
from reft_math.commands.provenance import provenance, versions
from reft_math.data.arithmetic import EMBEDDED_MODEL
from reft_math.data.fingerprint import regression_fingerprint
from reft_math.data.regression_rows import SCALES, RegressionRow, RegressionSplits, check_split, drawn
from reft_math.errors import UserError
from reft_math.files.atomic import write_json
from reft_math.files.tables import print_table
from reft_math.models.adapter import PrefixReftModel
from reft_math.models.base import absolute_name
from reft_math.models.card import parameters_sha256
from reft_math.regression.batches import encode_rows
from reft_math.regression.config import RegressorConfig, default_grid
from reft_math.regression.evaluation import EVALUATION_COLUMNS, table_rows
from reft_math.regression.metrics import rmse
from reft_math.regression.regressor import Regressor
from reft_math.regression.trainer import TRACE_NAME
from reft_math.training.arguments import check_precision
from reft_math.training.dry_run import Tokens, Trained, interventions_of, show
from reft_math.training.memory import kept_by_linears

LEARNING_RATES = {"red": 2e-4, "bias": 2e-4, "loreft": 2e-4, "lora": 2e-4, "full": 1e-5}
EMBEDDED_LEARNING_RATES = {"red": 5e-3, "bias": 5e-3, "loreft": 5e-3, "lora": 5e-3, "full": 1e-3}
HEAD_LEARNING_RATE = 1e-3
# Compared on validation rows, as above; other heads are best at 1e-3.
EMBEDDED_HEAD_LEARNING_RATES = dict.fromkeys(
    (f"head:{name}" for name in ("mean", "min", "max", "probabilities", "raft-grid", "raft-all")), 2e-2
)


def resolve(options: RegressionOptions) -> RegressionOptions:
    """Fills in settings whose default depends on others.

    Raises:
        UserError: The user's own data lack a grid or necessary bounds, or float16 lacks a GPU.
    """
    check_precision(options)
    check_split(options.data, "train")
    is_embedded = options.model == EMBEDDED_MODEL
    rates = EMBEDDED_LEARNING_RATES if is_embedded else LEARNING_RATES
    head_rates = EMBEDDED_HEAD_LEARNING_RATES if is_embedded else {}
    scale = SCALES.get(options.data)
    is_log, is_head = options.loss == "log", options.loss.startswith("head:")
    scales_targets = options.scale_targets or is_log
    grid, bounds = options.grid, options.bounds
    if is_log:
        if grid not in (None, "1"):
            raise UserError(f"the log loss is that of one token, which stands for 1; got --grid {grid}: leave it out")
        grid = "1"
    elif grid is None and scales_targets:
        if options.loss == "ce":
            raise UserError(
                "cross-entropy of scaled targets needs a fine grid from 0 to 1; pass --grid, such as 0:1:0.01"
            )
        grid = "0,1"
    elif grid is None and options.loss not in GRIDLESS:
        grid = default_grid(options.data, is_fine=options.loss == "ce")
    if not scales_targets and bounds is not None:
        raise UserError(f"--bounds {bounds} is for scaled targets; pass --scale-targets too, or leave it out")
    if scales_targets and bounds is None:
        if scale is None:
            raise UserError(
                "rows of one's own are scaled by bounds of their own; pass --bounds, such as --bounds 0,100"
            )
        bounds = f"{scale.bounds[0]:g},{scale.bounds[1]:g}"
    return replace(
        options,
        learning_rate=options.learning_rate or rates[options.tune],
        head_learning_rate=options.head_learning_rate
        or (head_rates.get(options.loss, HEAD_LEARNING_RATE) if is_head else None),
        grid=grid,
        bounds=bounds,
        scale_targets=scales_targets,
    )


def regressor_config(options: RegressionOptions) -> RegressorConfig:
    """Returns the regressor's configuration from resolved options."""
    return RegressorConfig(
        loss=options.loss,
        grid=options.grid or RegressorConfig.grid,  # also set, unused, for heads that read no grid
        texts=None if options.grid_texts is None else tuple(options.grid_texts.split(",")),
        normalised=options.normalised,
        bounds=None if options.bounds is None else _bounds(options.bounds),
        bidirectional=options.bidirectional,
        added_tokens=options.added_tokens,
        tune=options.tune,
        template=options.template,
        prompt=options.prompt,
        data=options.data,
        base_model=absolute_name(options.model),
        random_seed=options.seed if options.random_start else None,
        versions=versions(),
    )


def _bounds(text: str) -> tuple[float, float]:
    try:
        lower, upper = map(float, text.split(","))
    except ValueError:
        raise UserError(f"--bounds takes two numbers, such as 0,5; got {text!r}") from None
    return lower, upper


def cut(splits: RegressionSplits, options: RegressionOptions) -> RegressionSplits:
    """Cuts each split to the requested size: train's rows are drawn by the seed, the others alike for all seeds."""
    return RegressionSplits(
        drawn(splits.train, options.train_size, options.seed),
        drawn(splits.validation, options.validation_size),
        drawn(splits.test, options.test_size),
    )


def fingerprints(splits: RegressionSplits) -> dict[str, Any]:
    """Returns the rows' fingerprints by split."""
    return {name: regression_fingerprint(rows) for name, rows in vars(splits).items()}


def check_reach(regressor: Regressor, rows: Sequence[RegressionRow]) -> None:
    """Warns about targets beyond the averages that probabilities over the grid can give.

    Raises:
        UserError: The loss is the log loss, which is undefined for them.
    """
    if regressor.head is not None:
        return
    lower, upper = regressor.reach
    outside = [row.target for row in rows if not lower <= row.target <= upper]
    if outside and regressor.regressor_config.loss == "log":
        raise UserError(
            f"the log loss takes targets within the bounds {lower:g} and {upper:g}; {len(outside)} of {len(rows)}"
            f" training targets, from {min(outside):g} to {max(outside):g}, lie outside: pass other --bounds"
        )
    if outside:
        warnings.warn(
            f"{len(outside)} of {len(rows)} training targets (from {min(outside):g} to {max(outside):g}) lie outside"
            f" {lower:g} to {upper:g}, which is all that the grid's predictor can reach",
            stacklevel=2,
        )


def report(
    options: RegressionOptions,
    config: RegressorConfig,
    splits: RegressionSplits,
    saved: Path,
    evaluation: Mapping[str, Any],
) -> None:
    """Writes ``results.json`` and prints the table.

    Args:
        options: Resolved options.
        config: The trained regressor's configuration.
        splits: Rows for training and evaluation.
        saved: The regressor's folder.
        evaluation: Summaries on the test rows: ``start``, before any training, and ``tuned``.
    """
    trace = json.loads((saved / TRACE_NAME).read_text(encoding="utf-8"))
    mean = math.fsum(row.target for row in splits.train) / len(splits.train)
    constant = rmse([mean] * len(splits.test), [row.target for row in splits.test])
    lines = table_rows(evaluation, f"tuned/{config.predictor}")
    path = Path(options.output_dir) / RESULTS_NAME
    results = {
        **provenance(options),
        "regressor": dataclasses.asdict(config),
        "rows": {name: len(rows) for name, rows in vars(splits).items()},
        "fingerprints": fingerprints(splits),
        "training": trace,
        "rmse_of_training_mean": constant,
        "predictor": config.predictor,
        "parameters": parameters_sha256(saved),
        "evaluation": evaluation,
        "score_tables": {"evaluation, * was trained": [EVALUATION_COLUMNS, *lines]},
    }
    write_json(path, results)
    title = f"{options.data}, {len(splits.test)} test rows; * is what --loss {options.loss} trains"
    print_table(title, EVALUATION_COLUMNS, lines)
    before, after = (evaluation[name]["entropy"] for name in ("start", "tuned"))
    if before is not None and after is not None:
        print(f"entropy over the grid, mean over rows: {before['mean']:.2f} nats before, {after['mean']:.2f} after")
    print(f"the training targets' mean as every prediction: RMSE {constant:.3f}")
    evaluations = len(trace["steps"]) - 1
    print(f"step {trace['best_step']} is kept, the best by RMSE on validation rows of {evaluations} evaluated")
    if options.model == EMBEDDED_MODEL:
        print("The embedded model's figures say that the machinery works; they say nothing of a large language model.")
    print(f"regressor: {saved}")
    print(f"results: {path}")


def show_regression(options: RegressionOptions, regressor: Regressor, splits: RegressionSplits) -> None:
    """Of ``train/raft.py``."""
    model, adapter = regressor.model, regressor.adapter
    if isinstance(adapter, PrefixReftModel):
        trained = replace(interventions_of(adapter), module=regressor)
    else:
        trained = Trained(model, regressor, num_layers(model), kept_by_linears(regressor, model.dtype))
    rows = encode_rows(splits.train, regressor.tokenizer, regressor.template)
    prompts = [len(row["prompt_ids"]) for row in rows]
    added = regressor.added_tokens
    tokens = Tokens({"prompt": prompts}, [length + added for length in prompts], 1 + added)
    show(
        options, replace(trained, folder="regressor"), tokens, {name: len(rows) for name, rows in vars(splits).items()}
    )
    check_claim(options)
