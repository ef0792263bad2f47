"""Steps of all training commands: read and check the inputs before writing anything, train, evaluate."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from reft_math.commands.options.training import TrainingOptions
from reft_math.commands.output_folder import RESULTS_NAME
from reft_math.commands.provenance import provenance
from reft_math.data.arithmetic.problems import OPENERS
from reft_math.data.fingerprint import about_problems
from reft_math.data.prefix import PrefixCollator, PrefixDataset
from reft_math.data.problem import Problem
from reft_math.data.registry import VALIDATION_SIZE, held_out_problems, load_problems
from reft_math.data.templates import PromptTemplate, check_thoughts, get_template
from reft_math.decoding.completions import CompletionSettings, Generate, complete
from reft_math.decoding.gate_sweep import GateSweep
from reft_math.files.atomic import write_json
from reft_math.models import load_model, load_tokenizer
from reft_math.models.base import check_vocabulary, end_token_ids, load_skeleton
from reft_math.models.sharding import is_sharded
from reft_math.scoring.evaluate import (
    Scorer,
    default_batch_size,
    default_max_new_tokens,
    evaluate,
    is_numeric,
    print_evaluation,
    score_tables,
    summarise,
)
from reft_math.scoring.gate_choice import KL_GATES, evaluate_gates, gate_table
from reft_math.training.arguments import check_precision, training_arguments
from reft_math.training.checkpoints import Checksums, last_checkpoint
from reft_math.training.number_loss import NumberLoss
from reft_math.training.progress import show_progress
from reft_math.training.prompt_cache import BehindPrompts, PromptCache
from reft_math.training.trainer import NormControl, PrefixTrainer

Options = TypeVar("Options", bound=TrainingOptions)

_LINES = {
    True: "rows are packed: several of a batch share one line, and do not see each other",
    False: "rows are padded, each on a line of its own: this model does not keep rows on a line apart",
}


@dataclass(frozen=True)
class TrainingSetup:
    """A training command's inputs, read and checked."""

    options: TrainingOptions
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: PromptTemplate
    train_problems: list[Problem]
    validation_problems: list[Problem]
    test_problems: list[Problem]

    @property
    def rows(self) -> dict[str, int]:
        """Number of problems by split."""
        return {name: len(problems) for name, problems in self._splits.items()}

    @property
    def about(self) -> dict[str, Any]:
        """Data set, fingerprints of its rows by split, and prompt template, for the head of results."""
        about = about_problems(self.options.dataset, **self._splits)
        return {**about, "eval_dataset": self.options.eval_dataset, "template": str(self.template)}

    @property
    def _splits(self) -> dict[str, list[Problem]]:
        return {"train": self.train_problems, "validation": self.validation_problems, "test": self.test_problems}

    @property
    def base_revision(self) -> str | None:
        """The base's commit, if it came from the hub."""
        return getattr(self.model.config, "_commit_hash", None) or self.options.revision


def resolve(options: Options) -> Options:
    """Fills in settings whose default depends on the data sets."""
    is_embedded = options.dataset == "arithmetic"
    eval_dataset = options.eval_dataset or options.dataset
    return replace(
        options,
        learning_rate=options.learning_rate or (options.ARITHMETIC_RATE if is_embedded else options.LEARNING_RATE),
        noise=options.NOISE if is_embedded and options.noise is None else options.noise,
        eval_dataset=eval_dataset,
        eval_batch_size=options.eval_batch_size or default_batch_size(eval_dataset),
        max_new_tokens=options.max_new_tokens or default_max_new_tokens(eval_dataset),
    )


def prepare(
    options: TrainingOptions, model: PreTrainedModel | None = None, to_be_sharded: bool = False
) -> TrainingSetup:
    """Reads tokenizer, model and data. Writes nothing.

    Args:
        options: Resolved options.
        model: The base, if it is already loaded.
        to_be_sharded: As in `load_model`.

    Raises:
        UserError: One of them cannot be loaded as requested.
    """
    check_precision(options)
    set_seed(options.seed)
    tokenizer = load_tokenizer(options.model, options.revision)
    template = get_template(options.template, tokenizer)
    # The seed draws arithmetic's training problems. It does not change the validation rows of other sets: evaluation
    # commands must find the same ones.
    seed = options.seed if options.dataset == "arithmetic" else 0
    load = partial(load_problems, options.dataset, data_dir=options.data_dir, seed=seed)
    assert options.eval_dataset is not None  # resolved
    # If results are reported on another set, every row is for training.
    held_out = VALIDATION_SIZE if options.eval_dataset == options.dataset else 0
    train = load("train", limit=options.train_size, noise=options.noise or 0.0, validation_size=held_out)
    validation, test = held_out_problems(options.eval_dataset, options.data_dir)
    if model is None and options.dry_run:
        model = load_skeleton(options.model, options.revision, options)
    elif model is None:
        model = load_model(options.model, options.revision, options, to_be_sharded=to_be_sharded)
    check_vocabulary(model, tokenizer, template)
    check_thoughts(template, (problem.solution for problem in train if problem.solution))
    end_token_ids(model, tokenizer, template)  # raises if no token can end a solution
    return TrainingSetup(options, model, tokenizer, template, train, validation, test[: options.eval_size])


def train(
    job: TrainingSetup,
    model: nn.Module,
    dataset: PrefixDataset,
    collator: PrefixCollator | BehindPrompts,
    control: NormControl | None,
    number_loss: NumberLoss | None = None,
    prompt_cache: PromptCache | None = None,
) -> PrefixTrainer:
    """Trains ``model`` in the output folder; a resumed run starts from its last checkpoint."""
    checkpoints = Path(job.options.output_dir) / "checkpoints"
    trainer = PrefixTrainer(
        model=model,
        args=training_arguments(job.options, checkpoints, save_steps=job.options.save_steps),
        train_dataset=dataset,
        data_collator=collator,
        norm_control=control,
        number_loss=number_loss,
        prompt_cache=prompt_cache,
        callbacks=[Checksums()],
    )
    show_progress(trainer, control)
    if trainer.is_world_process_zero() and isinstance(collator, PrefixCollator):
        print(_LINES[collator.pack], file=sys.stderr)
    trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints) if job.options.resume else None)
    return trainer


def completion_settings(job: TrainingSetup) -> CompletionSettings:
    """Returns settings for greedy completions with the job's prompts."""
    assert job.options.max_new_tokens is not None  # resolved
    return CompletionSettings(
        tokenizer=job.tokenizer,
        template=job.template,
        end_token_ids=end_token_ids(job.model, job.tokenizer, job.template),
        max_new_tokens=job.options.max_new_tokens,
    )


def evaluate_all(job: TrainingSetup, decoders: Mapping[str, Generate]) -> dict[str, dict[str, Any]] | None:
    """Evaluates every decoder on the held-out problems and summarises each against the first, the base.

    On the embedded world the base is evaluated once more, started with the careful style's first tokens: the most that
    a good start can achieve.

    Returns:
        Summaries by decoder; None without problems, or where the base is spread over processes, which is for training.
    """
    options = job.options
    if not job.test_problems or is_sharded(job.model):
        return None
    assert options.eval_batch_size is not None  # resolved
    assert options.eval_dataset is not None
    plain = completion_settings(job)
    runs: dict[str, tuple[Generate, CompletionSettings]] = {
        name: (generate, plain) for name, generate in decoders.items()
    }
    if options.eval_dataset == "arithmetic":
        base = next(iter(decoders.values()))
        runs["base_given_careful_start"] = (base, replace(plain, opener=OPENERS["stepwise"]))
    records = {}
    folder = Path(options.output_dir) / "records"
    with Scorer(is_numeric(options.eval_dataset, job.test_problems)) as score:
        for name, (generate, how) in runs.items():
            rows = partial(complete, generate=generate, decoding=how, device=job.model.device)
            path = folder / f"{name}.jsonl"
            records[name] = evaluate(job.test_problems, rows, score, path, name, batch_size=options.eval_batch_size)
    first = next(iter(records.values()))
    return {
        name: {**summarise(found, None if found is first else first), "seconds_per_answer": found.seconds_per_answer}
        for name, found in records.items()
    }


def evaluate_kl_gates(job: TrainingSetup, generate: Generate, size: int) -> dict[str, dict[str, Any]]:
    """Evaluates KL gates on the first ``size`` problems of the validation split.

    Args:
        job: The training command's inputs.
        generate: Takes a ``gate``.
        size: Maximum number of problems.
    """
    options = job.options
    assert options.eval_batch_size is not None  # resolved
    assert options.eval_dataset is not None
    problems, plain = job.validation_problems[:size], completion_settings(job)
    sweep = GateSweep(generate, job.model.generate, plain, job.model.device, KL_GATES)
    with Scorer(is_numeric(options.eval_dataset, problems)) as score:
        folder = Path(options.output_dir) / "calibration"
        return evaluate_gates(KL_GATES, problems, sweep.completer, score, folder, options.eval_batch_size)


def report(
    job: TrainingSetup,
    evaluation: Mapping[str, Any] | None,
    results: Mapping[str, Any],
    *notes: str,
    takes_gate: bool = True,
) -> None:
    """Writes ``results.json`` and prints the table, or how to evaluate if there is no evaluation, and the notes.

    Args:
        job: The training command's inputs.
        evaluation: Summaries by decoder; None if there are none.
        results: What else ``results.json`` holds.
        notes: Lines to print after the table.
        takes_gate: Whether the adapter has a gate; peft's has none, and evaluations take it as ``--model``.
    """
    options = job.options
    folder = Path(options.output_dir)
    head = provenance(options)
    settings = {
        "model": {"name": options.model, "revision": job.base_revision, "parameters": job.model.num_parameters()},
        **job.about,
    }
    tables = score_tables(evaluation) if evaluation else {}
    if calibration := results.get("calibration"):
        tables |= gate_table(calibration, results["gate"])
    scores = {"evaluation": evaluation, "score_tables": tables}
    write_json(folder / RESULTS_NAME, {**head, **settings, **results, **scores})
    if evaluation is None:
        why = "a sharded base is for training" if is_sharded(job.model) else "--eval-size is 0"
        adapter = f"{folder / 'adapter'}" + " --device-map auto" * is_sharded(job.model)
        commands = f"eval/gsm8k.py --model {adapter}"
        if takes_gate:
            calibration = f"eval/calibrate_gate.py --adapter {adapter} --dataset {options.eval_dataset} --save"
            commands = f"{calibration}, then eval/gsm8k.py --adapter {adapter}"
        print(f"not evaluated: {why}. On a machine that holds the base: {commands}")
    else:
        title = f"{options.eval_dataset}, {len(job.test_problems)} held-out problems, greedy"
        print_evaluation(title, evaluation)
    for note in notes:
        print(note)
    if options.model == "arithmetic":
        print("The embedded model's figures say that the machinery works; they say nothing of a large language model.")
    print(f"adapter: {folder / 'adapter'}")
    print(f"results: {folder / RESULTS_NAME}")
