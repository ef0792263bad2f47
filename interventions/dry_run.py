"""What ``--dry-run`` says of interventions and of regressors.

Each function prints, writes nothing, and raises `UserError` where the run would end at once, as the output folder is
not for it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from interventions import prefix_training
from interventions.model import PrefixReftModel
from interventions.sites import num_layers
from interventions.trials import options_of
from reft_math.command import check_claim
from reft_math.data.regression import RegressionSplits
from reft_math.regressor.batches import encode_rows
from reft_math.regressor.model import Regressor
from reft_math.training import job as jobs
from reft_math.training.dry_run import Tokens, Trained, show, solution_tokens
from reft_math.training.memory import kept_by_linears
from reft_math.training.prefix_options import PrefixOptions
from reft_math.training.regression_options import RegressionOptions


def show_prefix(prefix: prefix_training.PrefixJob) -> None:
    """Of ``train/prefix_reft.py``."""
    tokens = solution_tokens(prefix.job, prefix.dataset)
    show(prefix.options, interventions_of(prefix.model, decoded=2), tokens, prefix.job.rows)
    if prefix.number_loss is not None:
        print(prefix.number_loss)
    check_claim(prefix.options)


def show_trials(options: PrefixOptions, count: int, **largest: Any) -> None:
    """Of ``count`` trials, by the largest of them: the command's settings with these changes."""
    prefix = prefix_training.prepare(options_of(options, Path(options.output_dir), **largest))
    tokens = solution_tokens(prefix.job, prefix.dataset)
    show(jobs.resolve(options), interventions_of(prefix.model, decoded=2), tokens, prefix.job.rows, count)
    check_claim(options)


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


def interventions_of(model: PrefixReftModel, decoded: int = 1) -> Trained:
    config, base = model.prefix_config, model.model
    layers = [layer for layer, _ in model.by_layer()]
    # RED keeps what it acts on as it is, a bias nothing, the others in float32.
    element = {"red": base.dtype.itemsize, "bias": 0}.get(config.intervention, 4)
    assert config.width is not None  # get_prefix_reft_model
    kept = len(layers) * config.width * element
    return Trained(base, model, num_layers(base) - 1 - min(layers), kept, config.site == "block", decoded)
