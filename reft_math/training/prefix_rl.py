"""Trains prefixes by reward: makes the trainer of a prepared run and reads what it found."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from reft_math.commands.options.prefix_rl import PrefixRlOptions
from reft_math.data.prefix import PromptDataset
from reft_math.decoding.engine import Engine
from reft_math.errors import UserError
from reft_math.files.atomic import write_folder
from reft_math.files.strict import read_object
from reft_math.scoring.evaluate import Scorer, is_numeric
from reft_math.training import job as jobs
from reft_math.training.arguments import training_arguments
from reft_math.training.checkpoints import BestCheckpoint, Checksums, last_checkpoint
from reft_math.training.prefix_training import PrefixJob
from reft_math.training.progress import show_progress
from reft_math.training.rl_trainer import VALIDATION_NAME, PrefixRlTrainer, RewardSettings
from reft_math.training.rollouts import Rollouts


def check(prefix: PrefixJob) -> Engine | None:
    """Returns the engine, if there is one.

    Raises:
        UserError: There is nothing to choose the step by, no room after a prefix, or no engine where one is named.
    """
    options = prefix.options
    assert isinstance(options, PrefixRlOptions)
    if not prefix.job.validation_problems:
        raise UserError(
            f"{options.eval_dataset} has no validation problems to choose the step by; name a set that has training"
            " problems with --eval-dataset"
        )
    assert options.max_new_tokens is not None  # resolved
    if options.max_new_tokens <= options.k:
        raise UserError(f"--max-new-tokens must be more than --k, {options.k}; got {options.max_new_tokens}")
    return None if options.dry_run else Engine.from_options(options, prefix.job.tokenizer)


def train(prefix: PrefixJob, engine: Engine | None) -> dict[str, Any]:
    """Trains into ``adapter/`` of the output folder, unless that is done, and restores the best step.

    Args:
        prefix: The run.
        engine: Completes prefixes in the base's place.

    Returns:
        `PrefixRlTrainer.validation`.
    """
    adapter = Path(prefix.options.output_dir) / "adapter"
    if adapter.is_dir():
        prefix.model.load_weights(adapter)
        prefix.control.load(adapter)
    else:
        with ExitStack() as stack:
            trainer = _trainer(prefix, engine, stack)
            checkpoints = Path(str(trainer.args.output_dir))
            trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints) if prefix.options.resume else None)
            write_folder(adapter, trainer.save_adapter)
    prefix.model.eval()
    return read_object(adapter / VALIDATION_NAME)


def step_line(validation: Mapping[str, Any], steps: int) -> str:
    """Says which step is kept and what it is right in."""
    before, kept = validation["accuracy"][0], validation["accuracy"][validation["steps"].index(validation["best_step"])]
    line = (
        f"step {validation['best_step']} of {steps} is kept, the best on validation problems: {kept:.1%}, before"
        f" training {before:.1%}"
    )
    return line if kept > before else f"{line}; note: none is more often right than the base"


def _trainer(prefix: PrefixJob, engine: Engine | None, stack: ExitStack) -> PrefixRlTrainer:
    options, job = prefix.options, prefix.job
    assert isinstance(options, PrefixRlOptions)
    assert options.eval_batch_size is not None  # resolved
    settings = jobs.completion_settings(job)
    score = stack.enter_context(Scorer(is_numeric(options.dataset, [*job.train_problems, *job.validation_problems])))
    rollouts = Rollouts(
        job.model.generate,
        settings,
        score,
        Path(options.output_dir) / "records" / "rollouts.jsonl",
        options.eval_batch_size,
        job.model.device,
        engine,
    )
    how = RewardSettings(
        k=options.k,
        samples=options.samples,
        temperature=options.temperature,
        end_token_ids=settings.end_token_ids,
        pad_token_id=int(job.tokenizer.pad_token_id),
        estimator=options.estimator,
        token_cost=options.token_cost,
        kl_weight=options.kl_weight,
    )
    arguments = training_arguments(
        options,
        Path(options.output_dir) / "checkpoints",
        eval_strategy="steps",
        eval_steps=options.eval_steps,
        eval_on_start=True,
        save_steps=options.eval_steps,
        per_device_eval_batch_size=options.eval_batch_size,
        load_best_model_at_end=True,
        metric_for_best_model="eval_reward",
        greater_is_better=True,
    )
    validation = PromptDataset(job.validation_problems[: options.validation_size], job.tokenizer, job.template)
    trainer = PrefixRlTrainer(
        model=prefix.model,
        args=arguments,
        train_dataset=prefix.dataset,
        eval_dataset=validation,
        data_collator=_collate,
        norm_control=prefix.control,
        how=how,
        rollouts=rollouts,
        callbacks=[BestCheckpoint(), Checksums()],
    )
    show_progress(trainer, prefix.control)
    return trainer


def _collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"rows": rows}
