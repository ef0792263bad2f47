"""Runs ``eval/norm_sweep.py`` and ``eval/ablation.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from interventions.sites import site_width
from reft_math.commands.options.prefix import PrefixOptions
from reft_math.commands.output_folder import RESULTS_NAME, check_claim
from reft_math.commands.processes import claim, leave_process_group, process_state
from reft_math.commands.provenance import provenance
from reft_math.experiments.figures.trials import ablation_figure, norm_sweep_figure
from reft_math.experiments.trial_runs import Common, begin, options_of, prepare, run_trial
from reft_math.experiments.trials import TableRow, Trial, cell_rows, effect_rows, norm_rows, share_rows, trial_rows
from reft_math.files.atomic import write_csv, write_json
from reft_math.files.plots import write_figure
from reft_math.files.tables import lines, print_table
from reft_math.scoring.evaluate import score_tables, summarise
from reft_math.training import job as jobs
from reft_math.training import prefix_training
from reft_math.training.dry_run import interventions_of, show

# Curves, with their trials' names and settings.
_FREE = {"b free": ("free", {"project_number_direction": False})}
_KEPT_OFF = {"b kept off the number direction": ("kept-off", {"project_number_direction": True})}
_ALONE = {"b alone, without s": ("bias-alone", {"intervention": "bias", "project_number_direction": False})}


def run_norm_sweep(options: PrefixOptions, norms: Sequence[float], seeds: int, project: bool, alone: bool) -> None:
    """Runs trials at every norm and seed, on one or more curves.

    Args:
        options: The command's settings.
        norms: Target norms.
        seeds: Number of runs at each.
        project: Add a curve of biases kept off the number direction.
        alone: Add a curve of biases without scales.
    """
    curves: dict[str, tuple[str, dict[str, Any]]] = _FREE | (_KEPT_OFF if project else {}) | (_ALONE if alone else {})
    plan = [(curve, norm, seed) for curve in curves for norm in norms for seed in _seeds(options, seeds)]
    if options.dry_run:
        show_trials(options, len(plan))
        return
    prefix, directions = prepare(options, norms[0])
    common = begin(prefix, directions, claim(options, prefix.job.about["fingerprints"]))
    trials: list[Trial] = []
    for place, (curve, norm, seed) in enumerate(plan, start=1):
        kind, settings = curves[curve]
        about = {"curve": curve, "target_norm": norm, "seed": seed}
        changes = {"target_norm": norm, "seed": seed, **settings}
        name = f"{kind}-{norm}-seed{seed}"
        trials.append(_run(place, len(plan), name, options, common, about, changes, prefix.calibrates))
    leave_process_group()
    base, model = summarise(common.base), common.job.model
    widths = {"change": site_width(model, "block"), "bias": site_width(model, str(prefix.options.site))}
    widths = {name: width for name, width in widths.items() if name in trials[0].shares}
    tables = {"norms": norm_rows(trials), "shares": share_rows(trials, widths), "trials": trial_rows(trials)}
    figure = norm_sweep_figure(tables["trials"], tables["norms"], tables["shares"], base)
    _write(options, common, tables, figure, "norm_sweep", base)


def run_ablation(options: PrefixOptions, target_norm: float, seeds: int) -> None:
    """Runs trials with and without truncation and norm control.

    Args:
        options: The command's settings, with the norm control to switch on.
        target_norm: Target of the norm.
        seeds: Number of runs of each kind.
    """
    plan = [(cut, held, seed) for cut in (True, False) for held in (True, False) for seed in _seeds(options, seeds)]
    if options.dry_run:
        show_trials(options, len(plan), full_fraction=1.0)
        return
    prefix, directions = prepare(options, target_norm)
    common = begin(prefix, directions, claim(options, prefix.job.about["fingerprints"]))
    trials: list[Trial] = []
    for place, (cut, held, seed) in enumerate(plan, start=1):
        name = f"{f'k{options.k}' if cut else 'whole'}-{'held' if held else 'free'}-seed{seed}"
        about = {"truncation": cut, "norm_control": held, "seed": seed}
        control = options.norm_control if held else "none"
        changes = {
            "target_norm": target_norm,
            "seed": seed,
            "full_fraction": 0.0 if cut else 1.0,
            "norm_control": control,
        }
        # For whole solutions too: the gate is one of the three factors.
        calibrates = options.calibrate_gate and options.gate is None
        trials.append(_run(place, len(plan), name, options, common, about, changes, calibrates))
    leave_process_group()
    base = summarise(common.base)
    tables = {"cells": cell_rows(trials), "effects": effect_rows(trials), "trials": trial_rows(trials)}
    _write(options, common, tables, ablation_figure(tables["cells"], base), "ablation", base)


def _seeds(options: PrefixOptions, count: int) -> range:
    return range(options.seed, options.seed + count)


def _run(
    place: int,
    total: int,
    name: str,
    options: PrefixOptions,
    common: Common,
    about: Mapping[str, Any],
    changes: Mapping[str, Any],
    calibrates: bool,
) -> Trial:
    if process_state().is_main_process:
        print(f"trial {place} of {total}: {name}", flush=True)
    return run_trial(options_of(options, common.folder / "trials" / name, **changes), common, about, calibrates)


def _write(
    options: PrefixOptions,
    common: Common,
    tables: Mapping[str, list[TableRow]],
    figure: Figure,
    name: str,
    base: Mapping[str, Any],
) -> None:
    """Writes every table as CSV and in the results, and the figure."""
    folder = Path(common.folder)
    low, high = base["interval_95"]
    scores = {name: base[name] for name in ("correct", "total", "accuracy")}
    tables = {"base": [{**scores, "low": low, "high": high}], **tables}
    for title, rows in tables.items():
        write_csv(folder / f"{title}.csv", rows)
    write_figure(folder, name, figure)
    write_json(
        folder / RESULTS_NAME,
        {
            **provenance(options),
            **common.job.about,
            "evaluation": {"base": base},
            "score_tables": score_tables({"base": base}),
            "tables": tables,
        },
    )
    for title in [title for title in tables if title != "trials"]:
        header, *body = lines(tables[title])
        print_table(title, header, body)
    print(f"tables, figure and trials: {folder}")


def show_trials(options: PrefixOptions, count: int, **largest: Any) -> None:
    """Prints the dry run of ``count`` trials by their largest: the command's settings with these changes."""
    prefix = prefix_training.prepare(options_of(options, Path(options.output_dir), **largest))
    tokens = prefix_training.row_tokens(prefix)
    show(jobs.resolve(options), interventions_of(prefix.model, decoded=2), tokens, prefix.job.rows, count)
    check_claim(options)
