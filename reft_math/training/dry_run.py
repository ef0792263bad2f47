"""Prints for ``--dry-run`` what a run would train, its data, steps, memory and output folder."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from interventions.sites import num_layers
from reft_math.commands.options.training import FittingOptions, TrainingOptions
from reft_math.commands.processes import process_state
from reft_math.data.prefix import PrefixDataset, PromptDataset
from reft_math.files.atomic import is_used
from reft_math.files.tables import print_table
from reft_math.models.adapter import PrefixReftModel
from reft_math.training.checkpoints import newest_whole
from reft_math.training.job import TrainingSetup
from reft_math.training.memory import (
    Batch,
    activation_bytes,
    cache_bytes,
    decoder_of,
    layer_bytes,
    logit_bytes,
    parameter_bytes,
    parameter_count,
    working_bytes,
)


@dataclass(frozen=True)
class Trained:
    """Describes the trained parameters.

    Attributes:
        model: The base, without weights.
        module: Module that holds the trained parameters: the base itself, or one beside it.
        layers: Number of layers whose input gradients flow through.
        kept: Bytes per token of inputs that the trained parameters keep for the backward pass.
        is_outside: Whether they act on the outputs of layers, outside checkpointing.
        decoded: Rows per completion in decoding: two if a gate compares it with the base.
        folder: Name of the saved parameters in the output folder.
    """

    model: PreTrainedModel
    module: nn.Module
    layers: int
    kept: int
    is_outside: bool = False
    decoded: int = 1
    folder: str = "adapter"


@dataclass(frozen=True)
class Tokens:
    """Lengths of the training rows.

    Attributes:
        kinds: Lengths in tokens by kind.
        inputs: Tokens that the model reads of each row.
        targets: Greatest number of logits of any row.
    """

    kinds: Mapping[str, Sequence[int]]
    inputs: Sequence[int]
    targets: int


def solution_tokens(job: TrainingSetup, dataset: PrefixDataset) -> Tokens:
    """Returns lengths of rows that are trained on the first tokens of a solution."""
    whole = PrefixDataset(job.train_problems, job.tokenizer, job.template, k=None)
    prompts = [len(row["prompt_ids"]) for row in dataset.rows]
    targets = [len(row["target_ids"]) for row in dataset.rows]
    kinds = {"prompt": prompts, "trained of the solution": targets}
    kinds["whole solution"] = [len(row["target_ids"]) for row in whole.rows]
    inputs = [prompt + target - 1 for prompt, target in zip(prompts, targets, strict=True)]
    return Tokens(kinds, inputs, max(targets))


def drawn_tokens(dataset: PromptDataset, k: int) -> Tokens:
    """Returns lengths of rows whose first K tokens are drawn."""
    prompts = [len(row["prompt_ids"]) for row in dataset.rows]
    kinds = {"prompt": prompts, "drawn of the solution": [k] * len(prompts)}
    return Tokens(kinds, [prompt + k - 1 for prompt in prompts], k)


def optimiser_steps(rows: int, options: FittingOptions, processes: int) -> int:
    """Returns ``⌈epochs · ⌈⌈rows / (batch · processes)⌉ / accumulation⌉⌉``."""
    batches = math.ceil(rows / (options.batch_size * processes))
    return math.ceil(options.epochs * math.ceil(batches / options.accumulation))


def show(options: FittingOptions, trained: Trained, tokens: Tokens, rows: Mapping[str, int], trials: int = 1) -> None:
    """Prints the report. Writes nothing.

    Args:
        options: Resolved options.
        trained: The trained parameters.
        tokens: Lengths of the training rows.
        rows: Number of rows by split, including ``train``.
        trials: Number of runs.
    """
    if not process_state().is_main_process:
        return
    batch = Batch(options.rows_per_batch, max(tokens.inputs), tokens.targets)
    parts = memory_parts(options, trained, batch)
    parts["together"] = sum(parts.values())
    memory = [[name, size_text(part)] for name, part in parts.items()]
    memory.append(["at most, for", f"{batch.rows} × {batch.length:,} tokens"])
    if isinstance(options, TrainingOptions):
        memory.append(["cache in decoding, up to", size_text(cache_size(options, trained, tokens))])
    print_table("settings given or filled in", (), settings_rows(options))
    print_table("model", (), model_rows(options, trained))
    print_table("tokens a training row", ("", "median", "longest", "total"), token_rows(tokens))
    print_table("run", (), run_rows(options, trained.folder, rows, trials))
    print_table("memory a process, estimated", (), memory)
    print("dry run: nothing was run or written")


def settings_rows(options: FittingOptions) -> list[list[str]]:
    """Returns settings, given or resolved, that differ from the command's defaults, except ``--dry-run``."""
    rows = []
    for field in dataclasses.fields(options):
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        value = getattr(options, field.name)
        if field.name != "dry_run" and value != default:
            rows.append([f"--{field.name.replace('_', '-')}", str(value)])
    return rows or [["none", ""]]


def run_rows(options: FittingOptions, finished: str, rows: Mapping[str, int], trials: int) -> list[list[str]]:
    """Returns rows on the amount of work, the data and the output folder."""
    processes = process_state().num_processes
    return [
        *([["trials, each of at most", f"{trials}"]] if trials > 1 else []),
        ["rows", ", ".join(f"{count:,} {name}" for name, count in rows.items())],
        ["optimiser steps", f"{optimiser_steps(rows['train'], options, processes):,}"],
        ["rows a step", f"{options.batch_size} × {options.accumulation} × {processes}"],
        ["device", device_text()],
        ["output folder", options.output_dir],
        ["what is in it", folder_text(options, finished)],
    ]


def model_rows(options: FittingOptions, trained: Trained) -> list[list[str]]:
    """Returns rows on the base, its size and the number of trained parameters."""
    model, config = trained.model, trained.model.config.get_text_config()
    count = parameter_count(trained.module, is_trained=True)
    base = parameter_count(model, is_trained=False) or count
    return [
        ["base", str(options.model)],
        ["class", type(model).__name__],
        ["dtype", str(model.dtype).removeprefix("torch.")],
        ["layers", str(config.num_hidden_layers)],
        ["hidden size", str(config.hidden_size)],
        ["parameters", f"{base:,}"],
        ["trained parameters", f"{count:,}"],
        ["share of the base's", f"{count / base:.2%}" if count / base > 1e-3 else f"{count / base:.2e}"],
    ]


def token_rows(tokens: Tokens) -> list[list[str]]:
    """Returns median, greatest and total length of each kind."""
    return [
        [name, f"{statistics.median(lengths):g}", f"{max(lengths):,}", f"{sum(lengths):,}"]
        for name, lengths in tokens.kinds.items()
    ]


def memory_parts(options: FittingOptions, trained: Trained, batch: Batch) -> dict[str, int]:
    """Returns bytes by their use, estimated by `reft_math.training.memory`."""
    model = trained.model
    is_mixed = options.mixed_precision != "no"
    decoder = decoder_of(model.config, 2 if is_mixed else model.dtype.itemsize)
    own = parameter_bytes(trained.module, is_trained=True)
    checkpointing = options.gradient_checkpointing
    kept = trained.kept if trained.is_outside or not checkpointing else 0
    parts = {
        "weights": parameter_bytes(model, is_trained=False) + own,
        "gradients": own,
        "AdamW's two means": 2 * own,
        "activations": activation_bytes(decoder, batch, trained.layers, kept, checkpointing),
        "gradients of activations": working_bytes(decoder, batch),
        "logits and their gradients": logit_bytes(decoder, batch),
    }
    if checkpointing:
        parts["activations of one layer, recomputed"] = layer_bytes(decoder, batch)
    if is_mixed and model.dtype == torch.float32:
        linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
        parts[f"linear layers' copies in {options.mixed_precision}"] = sum(
            2 * linear.weight.numel() for linear in linears
        )
    return parts


def cache_size(options: TrainingOptions, trained: Trained, tokens: Tokens) -> int:
    """Returns bytes of keys and values of an evaluation batch, at the longest prompt and completion."""
    assert options.eval_batch_size is not None  # resolved
    assert options.max_new_tokens is not None
    decoder = decoder_of(trained.model.config, trained.model.dtype.itemsize)
    length = max(tokens.kinds["prompt"]) + options.max_new_tokens
    return cache_bytes(decoder, trained.decoded * options.eval_batch_size, length)


def size_text(size: float) -> str:
    """Formats bytes, such as ``12.0 KiB`` and ``14.96 GiB``."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def device_text() -> str:
    """Names the device of the run."""
    device = process_state().device
    if device.type != "cuda":
        return str(device)
    free, total = torch.cuda.mem_get_info(device)
    return f"{torch.cuda.get_device_name(device)}, {size_text(free)} of {size_text(total)} free"


def folder_text(options: FittingOptions, finished: str) -> str:
    """Describes the contents of the output folder, and what the run would do with them."""
    folder = Path(options.output_dir)
    if not is_used(folder):
        return "nothing yet"
    if options.overwrite:
        return "a run that would be deleted"
    if not options.resume:
        return "something already"
    if (folder / finished).is_dir():
        return "a trained run that would be evaluated"
    checkpoint = newest_whole(folder / "checkpoints")
    return f"a run that would go on from {'its start' if checkpoint is None else checkpoint.name}"


def interventions_of(model: PrefixReftModel, decoded: int = 1) -> Trained:
    config, base = model.prefix_config, model.model
    layers = [layer for layer, _ in model.by_layer()]
    # RED keeps its input in the input's dtype, a bias keeps nothing, the others keep theirs in float32.
    element = {"red": base.dtype.itemsize, "bias": 0}.get(config.intervention, 4)
    assert config.width is not None  # get_prefix_reft_model
    kept = len(layers) * config.width * element
    return Trained(base, model, num_layers(base) - 1 - min(layers), kept, config.site == "block", decoded)
