"""Prefix training: reads and checks inputs, trains interventions with their norm held, chooses a gate."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel

from interventions.activations import Array
from interventions.gates import parse_gate
from interventions.norms import mean_norm
from interventions.positions import BEHIND_PROMPTS
from reft_math.commands.options.prefix import HeldNormOptions, PrefixReftOptions
from reft_math.commands.options.training import ELEMENTWISE
from reft_math.commands.output_folder import check_claim
from reft_math.commands.processes import process_state
from reft_math.commands.provenance import versions
from reft_math.data.prefix import PrefixCollator, PrefixDataset, PromptDataset
from reft_math.errors import UserError
from reft_math.files.atomic import write_folder
from reft_math.models.adapter import PrefixReftModel, get_prefix_reft_model
from reft_math.models.base import absolute_name
from reft_math.models.config import PrefixReftConfig
from reft_math.models.sharding import is_sharded, shard
from reft_math.scoring.gate_choice import best_gate
from reft_math.scoring.rounding import NUM_PROBLEMS, acting_bias, acting_line, noise_floor
from reft_math.training import job as jobs
from reft_math.training.dry_run import Tokens, drawn_tokens, interventions_of, show, solution_tokens
from reft_math.training.norm_control import make_controller
from reft_math.training.number_loss import NumberLoss, make_number_loss
from reft_math.training.packing import keeps_packed_rows_apart
from reft_math.training.prompt_cache import BehindPrompts, PromptCache, make_prompt_cache, prompts_line
from reft_math.training.relative_size import TEXTS, relative_size
from reft_math.training.tracking import tracking
from reft_math.training.trainer import NormControl

Directions = Array | Callable[[jobs.TrainingSetup, str], Array]
LLAMA3_NORM = 0.54  # the note's value for Llama-3


@dataclass(frozen=True)
class PrefixJob:
    """A run's inputs, read and checked.

    Attributes:
        options: Resolved options.
        job: Base, tokenizer, template and problems.
        model: The base with fresh interventions; its config holds the initial gate.
        dataset: The training rows.
        control: Callback that holds the norm.
        number_loss: The loss on numbers, if there is one.
    """

    options: HeldNormOptions
    job: jobs.TrainingSetup
    model: PrefixReftModel
    dataset: PrefixDataset | PromptDataset
    control: NormControl
    number_loss: NumberLoss | None

    @property
    def prompts(self) -> list[list[int]]:
        """Tokens of each training row's prompt."""
        return [row["prompt_ids"] for row in self.dataset.rows]

    @property
    def is_sharded(self) -> bool:
        """Whether the base is spread over processes, which is for training and too slow for decoding."""
        return is_sharded(self.job.model)

    @property
    def calibrates(self) -> bool:
        """Whether the gate is chosen on the validation split."""
        return _calibrates(self.options) and not self.is_sharded


def prepare(
    options: HeldNormOptions,
    base: PreTrainedModel | None = None,
    directions: Directions | None = None,
    shards: bool = False,
) -> PrefixJob:
    """Reads all inputs and makes the interventions. Writes nothing.

    Args:
        options: The command's options.
        base: The base, if it is already loaded.
        directions: Directions along which layers encode numbers, ``(layer, width)``, or a function that finds them at
            a site (`reft_math.experiments.number_directions.number_directions`); needed to keep biases off them.
        shards: Spread the base over the processes.

    Raises:
        UserError: An input cannot be loaded as requested.
    """
    site = options.site_path or options.site or ("ffn_up" if options.intervention in ELEMENTWISE else "block")
    options = replace(jobs.resolve(options), site=site, site_path=None)
    if options.relative_target_norm is None:
        options = replace(options, target_norm=options.target_norm or LLAMA3_NORM)
    gate = parse_gate(options.gate or ("always" if options.is_ordinary else f"tokens:{options.k}"))
    if shards and options.project_number_direction:
        raise UserError(
            "--project-number-direction reads the base's activations in one process, and a sharded base runs in all at"
            " once; leave it out, or launch with configs/ddp.yaml"
        )
    job = jobs.prepare(options, base, to_be_sharded=shards)
    if _calibrates(options) and not job.validation_problems:
        raise UserError(
            f"{options.eval_dataset} is too small to choose a gate on; name one with --gate, such as {gate}"
        )
    model = get_prefix_reft_model(job.model, _config(options, job, site, str(gate)))
    dataset = _dataset(options, job)
    kept_off = None
    if options.project_number_direction and not options.dry_run:
        if directions is None:
            raise UserError("project_number_direction keeps biases off number directions; pass directions=")
        found = directions(job, site) if callable(directions) else directions
        kept_off = [torch.from_numpy(found[layer]).float() for layer in model.biases()]
    if shards:
        shard(job.model)
        model.interventions.to(job.model.device)
    control = _norm_control(options, model, dataset, kept_off)
    number_loss = None
    if isinstance(options, PrefixReftOptions) and options.numeric_weight > 0:
        rows = [row["target_ids"] for row in dataset.rows]
        number_loss = make_number_loss(options.numeric_weight, options.numeric_objective, job.tokenizer, rows)
    return PrefixJob(options, job, model, dataset, control, number_loss)


def _dataset(options: HeldNormOptions, job: jobs.TrainingSetup) -> PrefixDataset | PromptDataset:
    """Returns the training problems with the starts of their solutions, or for training by reward with answers."""
    if not isinstance(options, PrefixReftOptions):
        return PromptDataset(job.train_problems, job.tokenizer, job.template)
    return PrefixDataset(
        job.train_problems, job.tokenizer, job.template, options.k, options.full_fraction, options.seed
    )


def _config(options: HeldNormOptions, job: jobs.TrainingSetup, site: str, gate: str) -> PrefixReftConfig:
    return PrefixReftConfig(
        intervention=options.intervention,
        site=site,
        layers=options.layers,
        positions=options.positions,
        rank=options.rank,
        k=None if options.is_ordinary else options.k,
        gate=gate,
        base_model=absolute_name(options.model),
        base_revision=job.base_revision,
        template=str(job.template),
        versions=versions(),
    )


def _norm_control(
    options: HeldNormOptions,
    model: PrefixReftModel,
    dataset: PrefixDataset | PromptDataset,
    kept_off: list[torch.Tensor] | None,
) -> NormControl:
    """Makes the callback that holds the norm at ``n* = X·u``; u is 1, for a relative X the activations' norm."""
    unit = 1.0
    if options.relative_target_norm is not None and not options.dry_run:
        mine = relative_size(model, _sample(dataset))["mean"]["activation"]
        unit = broadcast_object_list([mine])[0]  # last digits may differ between processes: biases would drift apart
        with torch.no_grad():
            for bias in model.biases().values():
                bias.mul_(unit)  # LoReFT and DiReFT start at random
    target = unit * (options.relative_target_norm or options.target_norm or LLAMA3_NORM)
    if options.norm_control != "none":
        model.prefix_config = replace(model.prefix_config, target_norm=target)
    controller = make_controller(options.norm_control, target, len(dataset))
    return NormControl(model, controller, options.target_scale_norm, kept_off, unit)


def _calibrates(options: HeldNormOptions) -> bool:
    return options.calibrate_gate and options.gate is None and not options.is_ordinary


def train(prefix: PrefixJob) -> None:
    """Trains into ``adapter/`` of the output folder; if that exists, training was finished before a resume."""
    adapter = Path(prefix.options.output_dir) / "adapter"
    if adapter.is_dir():
        prefix.model.load_weights(adapter)
        prefix.control.load(adapter)
    else:
        cache, collator = _collated(prefix)
        if prefix.number_loss is not None and process_state().is_main_process:
            print(prefix.number_loss, file=sys.stderr)
        assert isinstance(prefix.dataset, PrefixDataset)
        trainer = jobs.train(
            prefix.job, prefix.model, prefix.dataset, collator, prefix.control, prefix.number_loss, cache
        )
        if trainer.is_world_process_zero():
            write_folder(adapter, trainer.save_model)
    prefix.model.eval()


def _collated(prefix: PrefixJob) -> tuple[PromptCache | None, PrefixCollator | BehindPrompts]:
    """Returns how batches are made, and the cache they need where prompts are read once."""
    options, model, padding = prefix.options, prefix.job.model, int(prefix.job.tokenizer.pad_token_id)
    assert isinstance(options, PrefixReftOptions)
    if _reads_prompts_once(options):
        cache = make_prompt_cache(model, prefix.prompts, options.prompt_cache, options.gradient_checkpointing)
        if cache is not None:
            return cache, BehindPrompts(padding, options.positions)
    return None, PrefixCollator(padding, options.positions, keeps_packed_rows_apart(model))


def _reads_prompts_once(options: PrefixReftOptions) -> bool:
    """Whether prompts are read once if the model allows it."""
    return options.positions in BEHIND_PROMPTS and options.prompt_cache > 0


def calibrate(prefix: PrefixJob) -> dict[str, dict[str, Any]]:
    """Makes the best KL gate the adapter's own; returns each gate's summary on the validation split."""
    found = jobs.evaluate_kl_gates(prefix.job, prefix.model.generate, prefix.options.calibration_size)
    prefix.model.prefix_config = replace(prefix.model.prefix_config, gate=best_gate(found))
    if process_state().is_main_process:
        adapter = Path(prefix.options.output_dir) / "adapter"
        prefix.model.prefix_config.save_pretrained(adapter)
    return found


def noise(prefix: PrefixJob) -> dict[str, Any]:
    """Returns the `noise_floor` on the validation split."""
    batch_size = prefix.options.eval_batch_size
    assert batch_size is not None  # resolved
    return noise_floor(prefix.model, jobs.completion_settings(prefix.job), prefix.job.validation_problems, batch_size)


def summary(prefix: PrefixJob) -> dict[str, Any]:
    """Returns the training's part of the results. All processes read the base's activations."""
    norms, target = prefix.control.trace["norm"], prefix.control.controller.target
    texts = _sample(prefix.dataset)
    return {
        "trainable_parameters": sum(parameter.numel() for parameter in prefix.model.parameters()),
        "train_rows": len(prefix.dataset),
        "gate": prefix.model.gate,
        "numbers": None if prefix.number_loss is None else asdict(prefix.number_loss.counts),
        "bias_norm": {
            "target": target,
            "target_per_coordinate": target / math.sqrt(prefix.model.prefix_config.width or math.nan),
            "achieved": mean_norm(list(prefix.model.biases().values())).item(),
            **acting_bias(prefix.model, texts[:NUM_PROBLEMS]),
            **tracking(norms, target),
            "controller": prefix.control.controller.name,
            "trace": prefix.control.trace,
        },
        "relative_size": relative_size(prefix.model, texts),
    }


def norm_lines(norm: dict[str, Any], controller: str, dtype: torch.dtype) -> list[str]:
    """Says of the summary's ``bias_norm`` how it ended and, below float32, how much of it acts."""
    achieved, target, last = norm["achieved"], norm["target"], norm["trace"]["norm"][-1]
    held = "not held" if controller == "none" else f"held by {controller}"
    found = [f"bias norm {achieved:.4f}, target {target:.4g}, {held}"]
    if dtype != torch.float32:
        found.append(acting_line(norm, dtype))
    if controller not in ("none", "projection") and last < 0.98 * target:  # a projection is an upper bound only
        found.append(
            "note: training ended before the norm reached its target;"
            " a higher learning rate or more epochs would get there"
        )
    return found


def _sample(dataset: PrefixDataset | PromptDataset) -> list[list[int]]:
    """Returns evenly spread prompts of the training rows, for measuring activations."""
    return [row["prompt_ids"] for row in dataset.rows[:: max(1, len(dataset) // TEXTS)][:TEXTS]]


def show_prefix(prefix: PrefixJob) -> None:
    """Prints the dry run of prefix training, on solutions or by reward."""
    show(prefix.options, interventions_of(prefix.model, decoded=2), row_tokens(prefix), prefix.job.rows)
    if prefix.number_loss is not None:
        print(prefix.number_loss)
    options = prefix.options
    if isinstance(options, PrefixReftOptions) and _reads_prompts_once(options) and not options.gradient_checkpointing:
        print(prompts_line(prefix.job.model, prefix.prompts, options.prompt_cache))
    check_claim(prefix.options)


def row_tokens(prefix: PrefixJob) -> Tokens:
    """Returns lengths of the training rows."""
    if isinstance(prefix.dataset, PrefixDataset):
        return solution_tokens(prefix.job, prefix.dataset)
    return drawn_tokens(prefix.dataset, prefix.options.k)
