"""Train a language model to predict numbers, with a regression-aware loss or a baseline, and evaluate it.

Without further options it trains RED with RAFT on synthetic data and the embedded model, in minutes on two cores:

    uv run train/raft.py --output-dir results/raft

On a real model and data set:

    uv run train/raft.py --model google/gemma-2-2b-it --data stsb --tune lora --loss raft --output-dir results/stsb

Losses: raft, mbr, ce (cross-entropy of the written number), log (of one token's probability), and the squared error of
a head: head:logit, head:mean, head:min, head:max, head:mlp, head:probabilities, head:relish, head:raft-grid,
head:raft-all. The step with the lowest RMSE on validation rows is kept. The output folder holds ``regressor/`` (for
`reft_math.regression.build.load_regressor`), ``records/`` (every prediction, before and after), ``checkpoints/`` and
``results.json``.
"""

from __future__ import annotations

from reft_math.commands.options.regression import RegressionOptions
from reft_math.commands.run import run


def main(options: RegressionOptions) -> None:
    from dataclasses import replace
    from typing import Any

    from transformers import set_seed

    from reft_math.commands.processes import claim, leave_process_group
    from reft_math.data.regression_rows import load_splits
    from reft_math.files.atomic import write_folder
    from reft_math.models import load_model, load_tokenizer
    from reft_math.models.base import check_no_adapter, load_skeleton
    from reft_math.models.card import CARD_NAME
    from reft_math.regression import job as jobs
    from reft_math.regression.build import load_regressor, make_regressor
    from reft_math.regression.card import write_regressor_card
    from reft_math.regression.evaluation import SampledAnswers, evaluate_regressor, summarise
    from reft_math.regression.job import show_regression
    from reft_math.regression.trainer import fit
    from reft_math.training.card import notes_beside

    options = jobs.resolve(options)
    config = jobs.regressor_config(options)
    if config.tune in ("lora", "full"):
        check_no_adapter(options.model, options.revision, f"--tune {config.tune}")
    splits = jobs.cut(load_splits(options.data, options.data_dir, options.seed, options.prompt), options)
    tokenizer = load_tokenizer(options.model, options.revision)
    if options.dry_run:
        model = load_skeleton(options.model, options.revision, options)
    else:
        model = load_model(options.model, options.revision, options, config.random_seed)
    config = replace(config, base_revision=getattr(model.config, "_commit_hash", None) or options.revision)
    set_seed(options.seed)
    site = options.site_path or options.site
    regressor = make_regressor(model, tokenizer, config, site, options.layers, options.rank, options.dropout)
    jobs.check_reach(regressor, splits.train)
    if options.dry_run:
        show_regression(options, regressor, splits)
        return
    folder = claim(options, jobs.fingerprints(splits))
    regressor.start_at_mean(splits.train)
    writing = SampledAnswers(options.samples, options.temperature, options.default, options.seed)

    def evaluate(name: str) -> dict[str, Any]:
        path = folder / "records" / f"{name}.jsonl"
        return summarise(evaluate_regressor(regressor, splits.test, path, name, options.eval_batch_size, writing))

    evaluation = {"start": evaluate("start")}
    saved = folder / "regressor"
    if saved.is_dir():  # resumed after training
        del model, regressor  # two models may not fit
        regressor = load_regressor(saved, loading=options)
    else:
        trainer = fit(regressor, splits.train, splits.validation, options, folder / "checkpoints")
        if trainer.is_world_process_zero():
            write_folder(saved, trainer.save_regressor)
    evaluation["tuned"] = evaluate("tuned")
    leave_process_group()
    jobs.report(options, regressor.regressor_config, splits, saved, evaluation)
    (saved / CARD_NAME).unlink(missing_ok=True)  # written on saving, without results
    write_regressor_card(saved, notes_beside(saved))


if __name__ == "__main__":
    run(main, RegressionOptions, __doc__)
