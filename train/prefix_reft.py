"""Train interventions on the first K tokens of solutions, hold their bias norm, and evaluate them against the base.

Without further options it runs on the embedded arithmetic world, in about two minutes on two CPU cores:

    uv run train/prefix_reft.py --k 10 --target-norm 0.54

On a real model and data set:

    uv run train/prefix_reft.py --k 10 --target-norm 0.54 --model meta-llama/Meta-Llama-3-8B-Instruct --dataset gsm8k

On several GPUs: ``torchrun --nproc-per-node 4 train/prefix_reft.py …``. The output folder holds ``adapter/`` (for
`PrefixReftModel.from_pretrained`, `pyreft.ReftModel.load` and `pyvene.IntervenableModel.load`), ``records/`` (every
completion), ``checkpoints/`` and ``results.json``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from reft_math.command import run
from reft_math.errors import UserError, require
from reft_math.training.options import TrainingOptions


@dataclass(frozen=True)
class PrefixReftOptions(TrainingOptions):
    """Options of prefix training, after those that every training command has."""

    output_dir: str = field(default="results/prefix-reft", metadata={"help": "Adapter, records and results go here."})
    k: int = field(default=10, metadata={"help": "Solution tokens to train on."})
    full_fraction: float = field(
        default=0.0, metadata={"help": "Share of the rows that keep the whole solution; 1 is ordinary ReFT."}
    )
    target_norm: float = field(
        default=0.54, metadata={"help": "Set point of the bias norm (mean over layers of ‖b‖₂)."}
    )
    norm_control: Literal["projection", "penalty", "step-size", "loss-weight", "none"] = field(
        default="projection", metadata={"help": "How the norm is held; loss-weight is the authors' PID."}
    )
    target_scale_norm: float | None = field(
        default=None, metadata={"help": "Hold the mean over layers of ‖s − 1‖₂ at or under this (RED)."}
    )
    numeric_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the regression loss on number tokens, so that near misses cost less than far ones."
        },
    )
    intervention: Literal["red", "loreft"] = field(default="red", metadata={"help": "Kind of intervention."})
    site: str | None = field(
        default=None,
        metadata={
            "help": "Where: ffn_up, ffn_down, attn_q, attn_k, attn_v, attn_o or block (ffn_up; block for loreft)."
        },
    )
    layers: str = field(default="all", metadata={"help": "all, or numbers and ranges such as 0,2,8-11."})
    positions: Literal["all", "generated", "prompt"] = field(
        default="all", metadata={"help": "Tokens the interventions act on: prompt and generated, or one of the two."}
    )
    rank: int | None = field(default=None, metadata={"help": "LoReFT's rank (4)."})
    gate: str | None = field(
        default=None,
        metadata={
            "help": "The adapter's default gate: kl:NATS, tokens:N, always, prompt or off (calibrated; tokens:K where"
            " it is not; always for ordinary ReFT)."
        },
    )
    calibrate_gate: bool = field(
        default=True,
        metadata={
            "help": "Choose the default gate, one of kl:0.25,min=1 to kl:16,min=1, by accuracy on the validation split."
        },
    )
    calibration_size: int = field(default=200, metadata={"help": "Validation problems at most."})

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "k", lambda value: value >= 1, "at least 1")
        require(self, "calibration_size", lambda value: value >= 1, "at least 1")
        require(self, "full_fraction", lambda value: 0 <= value <= 1, "in [0, 1]")
        require(self, "target_norm", lambda value: 0 < value < math.inf, "positive")
        require(self, "numeric_weight", lambda value: 0 <= value < math.inf, "0 or more")
        require(self, "target_scale_norm", lambda value: value is None or 0 < value < math.inf, "positive")


def main(options: PrefixReftOptions) -> None:
    from interventions import PrefixReftConfig, get_prefix_reft_model
    from reft_math.calibration import GATE_COLUMNS, best_gate, gate_rows
    from reft_math.command import print_table, versions
    from reft_math.data.prefix import PrefixCollator, PrefixDataset
    from reft_math.decoding.gate import AlwaysOn, parse_gate
    from reft_math.models import lasting_name
    from reft_math.processes import claim, part_ways, process_state
    from reft_math.regression.grid import number_tokens
    from reft_math.training import job as jobs
    from reft_math.training.arguments import save_once
    from reft_math.training.norm_control import make_controller, tracking_error
    from reft_math.training.trainer import NormControl, NumberLoss

    usual_site = "block" if options.intervention == "loreft" else "ffn_up"
    options = replace(jobs.resolve(options), site=options.site or usual_site)
    is_ordinary = options.full_fraction == 1
    gate = parse_gate(options.gate or ("always" if is_ordinary else f"tokens:{options.k}"))
    calibrates = options.calibrate_gate and options.gate is None and not is_ordinary
    job = jobs.prepare(options)
    if calibrates and not job.validation_problems:
        raise UserError(f"{options.dataset} is too small to choose a gate on; name one with --gate, such as {gate}")
    config = PrefixReftConfig(
        intervention=options.intervention,
        site=options.site or usual_site,
        layers=options.layers,
        positions=options.positions,
        rank=options.rank,
        k=None if is_ordinary else options.k,
        target_norm=None if options.norm_control == "none" else options.target_norm,
        gate=str(gate),
        base_model=lasting_name(options.model),
        base_revision=job.base_revision,
        template=str(job.template),
        versions=versions(),
    )
    model = get_prefix_reft_model(job.model, config)
    dataset = PrefixDataset(
        job.train_problems, job.tokenizer, job.template, options.k, options.full_fraction, options.seed
    )
    controller = make_controller(options.norm_control, options.target_norm, len(dataset))
    control = NormControl(model, controller, options.target_scale_norm)
    number_loss = None
    if options.numeric_weight > 0:
        number_loss = NumberLoss(options.numeric_weight, *number_tokens(job.tokenizer))
    folder = claim(options)

    adapter = folder / "adapter"
    if adapter.is_dir():  # resumed after training
        model.load_weights(adapter)
        control.load(adapter)
    else:
        collator = PrefixCollator(int(job.tokenizer.pad_token_id), options.positions)
        trainer = jobs.train(job, model, dataset, collator, control, number_loss)
        if trainer.is_world_process_zero():
            save_once(adapter, trainer.save_model)

    model.eval()
    calibration = None
    if calibrates:
        calibration = jobs.evaluate_kl_gates(job, model.generate, options.calibration_size)
        model.prefix_config = replace(model.prefix_config, gate=best_gate(calibration))
        if process_state().is_main_process:
            model.prefix_config.save_pretrained(adapter)
    decoders = {"base": job.model.generate, "reft" if is_ordinary else "prefix": model.generate}
    if calibrates or not isinstance(gate, AlwaysOn):
        decoders["always_on"] = partial(model.generate, gate="always")
    evaluation = jobs.evaluate_all(job, decoders)
    part_ways()
    norms = control.trace["norm"]
    results = {
        "trainable_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_rows": len(dataset),
        "gate": model.gate,
        "calibration": calibration,
        "bias_norm": {
            "target": options.target_norm,
            "achieved": norms[-1],
            "tracking_error": tracking_error(norms, options.target_norm),
            "controller": controller.name,
            "trace": control.trace,
        },
    }
    if calibration is not None:
        title = f"gates on {options.dataset}'s validation split; * is the adapter's default"
        print_table(title, GATE_COLUMNS, gate_rows(calibration, model.gate))
    jobs.report(job, evaluation, results)
    held = "not held" if controller.name == "none" else f"held by {controller.name}"
    print(f"bias norm {norms[-1]:.4f}, target {options.target_norm:g}, {held}")
    if options.norm_control != "none" and norms[-1] < 0.98 * options.target_norm:
        print(
            "note: training ended before the norm reached its target;"
            " a higher learning rate or more epochs would get there"
        )


if __name__ == "__main__":
    run(main, PrefixReftOptions, __doc__)
