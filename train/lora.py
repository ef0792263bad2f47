"""Train LoRA (peft) on the same data as `train/prefix_reft.py`, on whole solutions, and evaluate it against the base.

    uv run train/lora.py --rank 8
    uv run train/lora.py --match results/prefix-reft/adapter --output-dir results/lora-matched

The second trains as many parameters as the adapter has: on the embedded model rank 1 on query, key and value has
exactly RED's 3,072. The saved adapter is peft's; evaluation commands take its folder as ``--model``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from reft_math.commands.options.training import TrainingOptions
from reft_math.commands.run import run
from reft_math.errors import UserError, require

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LoraOptions(TrainingOptions):
    """LoRA's options, added to those of every training command."""

    LEARNING_RATE: ClassVar[float] = 1e-3

    output_dir: str = field(default="results/lora", metadata={"help": "Adapter, records and results go here."})
    learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of AdamW, cosine decay (1e-3; arithmetic 5e-3)."}
    )
    rank: int | None = field(default=None, metadata={"help": "Rank of the update (8)."})
    alpha: int | None = field(default=None, metadata={"help": "Scaling numerator (twice the rank)."})
    target_modules: str | None = field(
        default=None, metadata={"help": "Module names such as q_proj,v_proj, in every layer (all-linear)."}
    )
    match: str | None = field(
        default=None,
        metadata={
            "help": "Number of parameters to train, or an adapter with as many (folder or hub id); sets the rank,"
            " and the modules unless they are named."
        },
    )
    k: int | None = field(default=None, metadata={"help": "Solution tokens to train on (whole solutions)."})

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "rank", lambda value: value is None or value >= 1, "at least 1")
        require(self, "alpha", lambda value: value is None or value >= 1, "at least 1")
        require(self, "k", lambda value: value is None or value >= 1, "at least 1")
        if self.match is not None and self.rank is not None:
            raise UserError("--match chooses the rank; leave --rank out, or --match")


def main(options: LoraOptions) -> None:
    from dataclasses import replace
    from functools import partial

    from peft import load_peft_weights, set_peft_model_state_dict

    from reft_math.commands.output_folder import check_claim
    from reft_math.commands.processes import claim, leave_process_group
    from reft_math.data.prefix import PrefixCollator, PrefixDataset
    from reft_math.files.atomic import write_folder
    from reft_math.models.adapter_files import count_parameters
    from reft_math.models.base import check_no_adapter
    from reft_math.training import dry_run
    from reft_math.training import job as jobs
    from reft_math.training.matching import match_parameters
    from reft_math.training.memory import kept_by_linears
    from reft_math.training.packing import keeps_packed_rows_apart

    options, matched = jobs.resolve(options), options.match
    check_no_adapter(options.model, options.revision, "LoRA")
    job = jobs.prepare(options)
    if options.match is not None:
        count = int(options.match) if options.match.isdecimal() else count_parameters(options.match)
        modules, rank = match_parameters(job.model, count, options.target_modules)
        options = replace(options, match=None, rank=rank, target_modules=modules)
    rank, names = options.rank or 8, options.target_modules or "all-linear"
    options = replace(options, rank=rank, alpha=options.alpha or 2 * rank, target_modules=names)
    model = _put_on(job.model, options, job.base_revision)
    dataset = PrefixDataset(job.train_problems, job.tokenizer, job.template, options.k)
    if options.dry_run:
        kept = kept_by_linears(model, job.model.dtype)
        trained = dry_run.Trained(job.model, model, job.model.config.num_hidden_layers, kept)
        dry_run.show(options, trained, dry_run.solution_tokens(job, dataset), job.rows)
        check_claim(options)
        return
    folder = claim(options, job.about["fingerprints"])

    adapter = folder / "adapter"
    if adapter.is_dir():  # resumed after training
        set_peft_model_state_dict(model, load_peft_weights(str(adapter)))
    else:
        collator = PrefixCollator(
            int(job.tokenizer.pad_token_id), positions=None, pack=keeps_packed_rows_apart(job.model)
        )
        trainer = jobs.train(job, model, dataset, collator, control=None)
        if trainer.is_world_process_zero():
            write_folder(adapter, partial(_save, model))

    def base(inputs, **settings):  # type: ignore[no-untyped-def]
        with model.disable_adapter():
            return model.generate(inputs, **settings)

    model.eval()
    evaluation = jobs.evaluate_all(job, {"base": base, "lora": model.generate})
    leave_process_group()
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    settings = {"matched": matched, "rank": rank, "target_modules": names}
    results = {**settings, "trainable_parameters": trainable, "train_rows": len(dataset)}
    jobs.report(job, evaluation, results, takes_gate=False)


def _put_on(base: PreTrainedModel, options: LoraOptions, revision: str | None) -> PeftModel:
    """Puts a fresh LoRA on the base."""
    from peft import LoraConfig, get_peft_model

    from reft_math.models.base import absolute_name

    names = str(options.target_modules)
    if names != "all-linear":
        paths = [f".{path}" for path, _ in base.named_modules()]
        for name in names.split(","):  # peft fails only if it finds no module
            if not any(path.endswith(f".{name}") for path in paths):
                raise UserError(f"--target-modules must name linear modules of the model; got {name!r}")
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=options.rank,
        lora_alpha=options.alpha,
        target_modules=names if names == "all-linear" else names.split(","),
        revision=revision,
    )
    try:
        model = get_peft_model(base, config)
    except ValueError as error:
        raise UserError(f"--target-modules must name linear modules of the model; got {names!r} ({error})") from None
    model.peft_config["default"].base_model_name_or_path = absolute_name(options.model)
    return model


def _save(model: PeftModel, folder: Path) -> None:
    # Embeddings are not trained; peft would ask the hub to find that out.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink()  # an empty card template that holds the base's path


if __name__ == "__main__":
    run(main, LoraOptions, __doc__)
