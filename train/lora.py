"""Train LoRA (peft) on the same data as `train/prefix_reft.py`, on whole solutions, and evaluate it against the base.

    uv run train/lora.py --rank 8
    uv run train/lora.py --rank 1 --target-modules q_proj,k_proj,v_proj --output-dir results/lora-matched

On the embedded model the second has exactly as many parameters as RED on ``ffn_up`` (3,072).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from reft_math.command import run
from reft_math.errors import require
from reft_math.training.options import TrainingOptions


@dataclass(frozen=True)
class LoraOptions(TrainingOptions):
    """LoRA's options, after those that every training command has."""

    LEARNING_RATE: ClassVar[float] = 1e-3

    output_dir: str = field(default="results/lora", metadata={"help": "Adapter, records and results go here."})
    learning_rate: float | None = field(
        default=None, metadata={"help": "Peak, AdamW with cosine decay (1e-3; arithmetic 5e-3)."}
    )
    rank: int = field(default=8, metadata={"help": "Rank of the update."})
    alpha: int | None = field(default=None, metadata={"help": "Scaling numerator (twice the rank)."})
    target_modules: str = field(
        default="all-linear", metadata={"help": "all-linear, or module names such as q_proj,v_proj; in every layer."}
    )
    k: int | None = field(default=None, metadata={"help": "Solution tokens to train on (whole solutions)."})

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "rank", lambda value: value >= 1, "at least 1")
        require(self, "alpha", lambda value: value is None or value >= 1, "at least 1")
        require(self, "k", lambda value: value is None or value >= 1, "at least 1")


def main(options: LoraOptions) -> None:
    from peft import LoraConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict

    from reft_math.command import check_claim
    from reft_math.data.prefix import PrefixCollator, PrefixDataset
    from reft_math.errors import UserError
    from reft_math.models import lasting_name
    from reft_math.processes import claim, part_ways
    from reft_math.training import dry_run
    from reft_math.training import job as jobs
    from reft_math.training.arguments import save_once
    from reft_math.training.memory import kept_by_linears

    options = jobs.resolve(options)
    job = jobs.prepare(options)
    names = options.target_modules
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=options.rank,
        lora_alpha=options.alpha or 2 * options.rank,
        target_modules=names if names == "all-linear" else names.split(","),
    )
    try:
        model = get_peft_model(job.model, config)
    except ValueError as error:
        raise UserError(f"--target-modules must name linear modules of the model; got {names!r} ({error})") from None
    model.peft_config["default"].base_model_name_or_path = lasting_name(options.model)
    dataset = PrefixDataset(job.train_problems, job.tokenizer, job.template, options.k)
    if options.dry_run:
        kept = kept_by_linears(model, job.model.dtype)
        trained = dry_run.Trained(job.model, model, job.model.config.num_hidden_layers, kept)
        dry_run.show(options, trained, dry_run.solution_tokens(job, dataset), job.rows)
        check_claim(options)
        return
    folder = claim(options)

    adapter = folder / "adapter"
    if adapter.is_dir():  # resumed after training
        set_peft_model_state_dict(model, load_peft_weights(str(adapter)))
    else:
        collator = PrefixCollator(int(job.tokenizer.pad_token_id), positions=None)
        trainer = jobs.train(job, model, dataset, collator, control=None)
        if trainer.is_world_process_zero():
            save_once(adapter, model.save_pretrained)

    def base(inputs, **settings):  # type: ignore[no-untyped-def]
        with model.disable_adapter():
            return model.generate(inputs, **settings)

    model.eval()
    evaluation = jobs.evaluate_all(job, {"base": base, "lora": model.generate})
    part_ways()
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    jobs.report(job, evaluation, {"trainable_parameters": trainable, "train_rows": len(dataset)})


if __name__ == "__main__":
    run(main, LoraOptions, __doc__)
