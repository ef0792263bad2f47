"""Runs trials: trains, evaluates on the validation split, to choose by, and on the test split, to report.

Each has a folder of its own, with adapter, records and results; finished trials are read, not run again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from interventions.activations import Array
from interventions.gates import AlwaysOn, parse_gate
from reft_math.commands.options.prefix import PrefixOptions, PrefixReftOptions
from reft_math.commands.options.training import ELEMENTWISE
from reft_math.commands.output_folder import RESULTS_NAME
from reft_math.commands.processes import claim, process_state
from reft_math.commands.provenance import provenance
from reft_math.commands.resumable import Record
from reft_math.data.problem import Problem
from reft_math.decoding.completions import Generate, complete
from reft_math.errors import UserError
from reft_math.experiments.number_directions import number_directions
from reft_math.experiments.trials import ALWAYS, GATED, Trial
from reft_math.files.atomic import write_json
from reft_math.files.records import RecordFile
from reft_math.models.base import absolute_name
from reft_math.probes.number_measures import ActingAdapter, measure_changes
from reft_math.scoring.comparison import Run
from reft_math.scoring.evaluate import Scorer, evaluate, is_numeric, summarise
from reft_math.training import job as jobs
from reft_math.training import prefix_training
from reft_math.training.prefix_training import PrefixJob

# Number of validation problems for measuring an adapter's changes: thousands of tokens, at every layer.
_MEASURED = 50


@dataclass(frozen=True)
class Common:
    """The common part of a command's trials.

    Attributes:
        folder: The command's folder.
        job: The base and the problems.
        site: The adapters' site.
        base: The base's records on the test problems.
        directions: Number directions of layers, ``(layer, width)``: at the adapters' site and in the residual
            stream (``block``).
    """

    folder: Path
    job: jobs.TrainingSetup
    site: str
    base: list[Record]
    directions: dict[str, Array]

    @property
    def validation(self) -> list[Problem]:
        return self.job.validation_problems


def options_of(options: PrefixOptions, folder: Path, **changes: Any) -> PrefixReftOptions:
    """Returns one trial's settings: the command's with changes."""
    names = {field.name for field in fields(PrefixOptions)}
    values = {name: getattr(options, name) for name in names}
    return PrefixReftOptions(**{**values, "output_dir": str(folder), "overwrite": False, **changes})


def prepare(options: PrefixOptions, target_norm: float) -> tuple[PrefixJob, dict[str, Array]]:
    """Loads the trials' inputs, as the first of them would, and fits number directions. Writes nothing.

    Raises:
        UserError: Any of it cannot be had, or there is nothing to choose by.
    """
    prefix = prefix_training.prepare(options_of(options, Path(options.output_dir), target_norm=target_norm))
    if not prefix.job.validation_problems:
        raise UserError(f"{prefix.options.eval_dataset} has no validation problems to choose by; take a larger one")
    prefix.model.unload()  # trials put their own interventions on the base
    sites = dict.fromkeys([str(prefix.options.site), "block"])
    return prefix, {site: number_directions(prefix.job, site) for site in sites}


def begin(prefix: PrefixJob, directions: dict[str, Array], folder: Path) -> Common:
    """Evaluates the base alone."""
    path = folder / "records" / "base.jsonl"
    base = _complete(prefix, prefix.job.test_problems, prefix.job.model.generate, path, "base")
    return Common(folder, prefix.job, str(prefix.options.site), base, directions)


def run_trial(options: PrefixReftOptions, common: Common, about: Mapping[str, Any], calibrates: bool) -> Trial:
    """Trains and evaluates in the options' folder, unless already done.

    Args:
        options: The trial's options.
        common: The common part of all trials.
        about: Values that identify the trial; kept with the results.
        calibrates: Whether to choose its gate on validation problems.
    """
    folder = Path(options.output_dir)
    if not (folder / RESULTS_NAME).is_file():
        _run(options, common, about, calibrates)
    process_state().wait_for_everyone()
    results = Run.read(str(folder)).results
    return Trial(
        about=dict(about),
        achieved=results["bias_norm"]["achieved"],
        gate=results["gate"],
        validation=results["validation"],
        test=results["evaluation"],
        correct={name: _outcomes(folder, name) for name in results["evaluation"]},
        shares=results["number_direction"],
    )


def _run(options: PrefixReftOptions, common: Common, about: Mapping[str, Any], calibrates: bool) -> None:
    prefix = prefix_training.prepare(options, common.job.model, common.directions[common.site])
    about_job = prefix.job.about
    folder, model = claim(prefix.options, about_job["fingerprints"]), prefix.model
    prefix_training.train(prefix)
    calibration = prefix_training.calibrate(prefix) if calibrates else None
    decoders: dict[str, Generate] = {ALWAYS: partial(model.generate, gate="always")}
    if not isinstance(parse_gate(model.gate), AlwaysOn):
        decoders = {GATED: model.generate, **decoders}
    problems = {
        "validation": prefix.job.validation_problems[: options.calibration_size],
        "test": prefix.job.test_problems,
    }
    summaries: dict[str, dict[str, Any]] = {}
    for split, rows in problems.items():
        records = {
            name: _complete(prefix, rows, generate, _path(folder, split, name), f"{split}, {name}")
            for name, generate in decoders.items()
        }
        base = common.base if split == "test" else None
        summaries[split] = {name: summarise(found, base) for name, found in records.items()}
    results = {
        **provenance(prefix.options),
        "about": dict(about),
        "model": {"name": absolute_name(options.model), "revision": prefix.job.base_revision},
        **about_job,
        **prefix_training.summary(prefix),
        "calibration": calibration,
        "number_direction": _number_shares(prefix, common),
        "validation": summaries["validation"],
        "evaluation": summaries["test"],
    }
    model.unload()
    if process_state().is_main_process:
        write_json(folder / RESULTS_NAME, results)


def _path(folder: Path, split: str, decoder: str) -> Path:
    """Returns the records' file; test records are where every training command puts them."""
    return folder / "records" / (f"{decoder}.jsonl" if split == "test" else f"{split}-{decoder}.jsonl")


def _outcomes(folder: Path, decoder: str) -> dict[str, bool]:
    """Returns whether each test problem was solved, by id."""
    records = RecordFile(_path(folder, "test", decoder)).done
    return {name: bool(record["correct"]) for name, record in records.items()}


def _complete(
    prefix: PrefixJob, problems: Sequence[Problem], generate: Generate, path: Path, name: str
) -> list[Record]:
    job = prefix.job
    assert prefix.options.eval_batch_size is not None  # resolved
    rows = partial(complete, generate=generate, decoding=jobs.completion_settings(job), device=job.model.device)
    with Scorer(is_numeric(str(prefix.options.eval_dataset), problems)) as score:
        return evaluate(problems, rows, score, path, name, batch_size=prefix.options.eval_batch_size)


def _number_shares(prefix: PrefixJob, common: Common) -> dict[str, float]:
    """Measures the share of the biases, and of their changes, along the number directions.

    ``bias``: mean over layers of ``|uᵀb| / ‖b‖`` at the adapter's site (RED, bias). ``change``: mean over tokens
    and layers of ``|uᵀΔ| / ‖Δ‖`` in the residual stream, always on, on validation problems.
    """
    source = ActingAdapter("always on", "always-on", prefix.model, "always")
    problems, folder = common.validation[:_MEASURED], Path(prefix.options.output_dir)
    assert prefix.options.eval_batch_size is not None  # resolved
    decoding = jobs.completion_settings(prefix.job)
    records = measure_changes(
        decoding, source, problems, common.directions["block"], folder, prefix.options.eval_batch_size
    )
    projections, sizes = (np.concatenate([record[name] for record in records]) for name in ("projections", "sizes"))
    moved = sizes > 0
    shares = {"change": float(np.mean(np.abs(projections[moved]) / sizes[moved])) if moved.any() else 0.0}
    if prefix.options.intervention in ELEMENTWISE:
        units = common.directions[common.site]
        biases = {layer: bias.detach().cpu().numpy() for layer, bias in prefix.model.biases().items()}
        norms = {layer: np.linalg.norm(bias) for layer, bias in biases.items()}
        cosines = [abs(units[layer] @ bias) / norms[layer] for layer, bias in biases.items() if norms[layer] > 0]
        shares["bias"] = float(np.mean(cosines)) if cosines else 0.0
    return shares
