"""Pretrain the embedded arithmetic model from nothing (about 45 minutes on two CPU cores).

    uv run train/arithmetic.py --seed 0 --output-dir results/arithmetic-model

The folder is an ordinary transformers checkpoint with its tokenizer; ``reft_math/arithmetic/model`` is one of these.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class PretrainingConfig:
    output_dir: str = field(default="results/arithmetic-model", metadata={"help": "Where model and tokenizer go."})
    seed: int = field(default=0, metadata={"help": "Draws weights, problems and styles."})
    steps: int = field(default=13_000, metadata={"help": "Optimiser steps."})
    batch_size: int = field(default=32, metadata={"help": "Problems a step; each is seen once."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate of AdamW (cosine)."})
    resume: bool = field(default=False, metadata={"help": "Go on from the last checkpoint in the output folder."})


def main(config: PretrainingConfig) -> None:
    from functools import partial

    from transformers import Trainer, TrainingArguments

    from reft_math.arithmetic.pretraining import PretrainingDataset, build_model, pad_right
    from reft_math.arithmetic.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    model = build_model(tokenizer, config.seed)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=f"{config.output_dir}/checkpoints",
            max_steps=config.steps,
            per_device_train_batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=100,
            weight_decay=0.01,
            adam_beta2=0.98,
            train_sampling_strategy="sequential",
            logging_steps=100,
            save_steps=1000,
            save_total_limit=2,
            seed=config.seed,
            report_to="none",
            remove_unused_columns=False,
        ),
        train_dataset=PretrainingDataset(tokenizer, config.steps, config.batch_size, config.seed),
        data_collator=partial(pad_right, pad_token_id=tokenizer.pad_token_id),
    )
    trainer.train(resume_from_checkpoint=config.resume or None)
    model.save_pretrained(config.output_dir)
    tokenizer.save_pretrained(config.output_dir)


if __name__ == "__main__":
    from transformers import HfArgumentParser

    main(*HfArgumentParser(PretrainingConfig, description=__doc__).parse_args_into_dataclasses())
