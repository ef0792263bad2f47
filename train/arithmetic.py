"""Pretrain the embedded arithmetic model from nothing (about 40 minutes on two CPU cores).

    uv run train/arithmetic.py --seed 0 --output-dir results/arithmetic-model

The folder is an ordinary transformers checkpoint with its tokenizer; ``reft_math/data/arithmetic/model`` is one of
these. At the end its up-projections are scaled by 1/64 and its down-projections by 64, which leaves every logit as it
was.

The two-sided world, in which no style of solution is right for all problems, starts from the embedded model:

    uv run train/arithmetic.py --two-sided --steps 2000 --learning-rate 1e-3 --output-dir results/two-sided
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from reft_math.commands.run import run
from reft_math.errors import require, require_one_process, require_seed


@dataclass(frozen=True)
class PretrainingOptions:
    output_dir: str = field(default="results/arithmetic-model", metadata={"help": "Model and tokenizer go here."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, problems and styles."})
    steps: int = field(default=13_000, metadata={"help": "Optimiser steps."})
    batch_size: int = field(default=32, metadata={"help": "Problems per step; each is seen once."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate of AdamW (cosine)."})
    two_sided: bool = field(
        default=False,
        metadata={"help": "Go on from the embedded model, in a world where one style is right for women, one for men."},
    )
    save_steps: int = field(default=1000, metadata={"help": "Optimiser steps between checkpoints."})
    resume: bool = field(default=False, metadata={"help": "Resume a stopped run."})
    overwrite: bool = field(default=False, metadata={"help": "Delete the run in the output folder and start over."})

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "save_steps"):
            require(self, name, lambda value: value >= 1, "at least 1")
        require(self, "learning_rate", lambda value: 0 < value < math.inf, "positive")
        require_seed(self)
        require_one_process("the embedded model")


def main(options: PretrainingOptions) -> None:
    from functools import partial

    from transformers import Trainer, TrainingArguments

    from reft_math.commands.output_folder import RESULTS_NAME, claim_output_dir
    from reft_math.commands.provenance import provenance
    from reft_math.data.arithmetic.pretraining import (
        UP_PROJECTION_SCALE,
        PretrainingDataset,
        build_model,
        pad_right,
        rescale_up_projections,
    )
    from reft_math.data.arithmetic.tokenizer import build_tokenizer
    from reft_math.files.atomic import write_files, write_json
    from reft_math.files.tensors import check_finite
    from reft_math.models import load_model
    from reft_math.training.checkpoints import Checksums, last_checkpoint
    from reft_math.training.progress import show_progress

    folder = claim_output_dir(options)
    tokenizer = build_tokenizer()
    if options.two_sided:
        model = load_model("arithmetic")
        rescale_up_projections(model, 1 / UP_PROJECTION_SCALE)
        model.requires_grad_(True).train()
    else:
        model = build_model(tokenizer, options.seed)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder / "checkpoints"),
            max_steps=options.steps,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=100,
            weight_decay=0.01,
            adam_beta2=0.98,
            train_sampling_strategy="sequential",
            logging_steps=options.save_steps,
            save_steps=options.save_steps,
            seed=options.seed,
            report_to="none",
            remove_unused_columns=False,
        ),
        train_dataset=PretrainingDataset(tokenizer, options.steps, options.batch_size, options.seed, options.two_sided),
        data_collator=partial(pad_right, pad_token_id=tokenizer.pad_token_id),
        callbacks=[Checksums()],
    )
    resumed = last_checkpoint(folder / "checkpoints") if options.resume else None
    show_progress(trainer)
    trainer.train(resume_from_checkpoint=resumed)
    check_finite(model.state_dict(), "the trained model")
    rescale_up_projections(model, UP_PROJECTION_SCALE)
    write_files(folder, model.save_pretrained)
    write_files(folder, tokenizer.save_pretrained)
    # Not the metrics that `train` returns: in a resumed run they cover only the steps since.
    losses = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
    write_json(folder / RESULTS_NAME, {**provenance(options), "losses": losses})
    print(f"model: {folder}")
    print(f"results: {folder / RESULTS_NAME}")


if __name__ == "__main__":
    run(main, PretrainingOptions, __doc__)
