"""Runs ``eval/number_probe.py``: its measurements in order, and its output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from interventions.activations import Array
from interventions.gates import AlwaysOn, PromptOnly, TokenGate, parse_gate
from interventions.sites import num_layers, site_width
from reft_math.commands.options.evaluation import RunOptions
from reft_math.commands.output_folder import RESULTS_NAME
from reft_math.commands.processes import leave_process_group
from reft_math.data.fingerprint import about_problems
from reft_math.data.registry import problems_to_report_on
from reft_math.errors import UserError
from reft_math.experiments.figures.number_probe import changes_figure, probes_figure, pushes_figure
from reft_math.files.atomic import write_csv, write_json
from reft_math.files.plots import write_figure
from reft_math.files.tables import lines, print_table
from reft_math.probes.number import Direction
from reft_math.probes.number_measures import (
    ActingAdapter,
    Pusher,
    Solver,
    fit_places,
    measure_changes,
    number_directions,
    solve_pushed,
)
from reft_math.probes.number_tables import (
    Changes,
    Push,
    TableRow,
    form_row,
    histogram_rows,
    position_rows,
    push_row,
    share_rows,
    threshold_rows,
    wrong_sums,
)
from reft_math.probes.number_texts import FORMS, Sum, draw_sums
from reft_math.scoring.context import EvaluationContext, load_beside, load_setting

_PROBE_SUMS = 500  # for fitting and for choosing the prompt form; not pushed
_DRAWS = 10
_DIRECTIONS: tuple[Direction, ...] = ("probe", "random", "orthogonal")
_GOOD_ACCURACY = 0.95


@dataclass(frozen=True)
class Plan:
    """Plan of the pushes: sums, sizes and layers.

    Attributes:
        digits: Digits of each of the two numbers.
        sums: Number of sums.
        alphas: ``|α|`` above 0, in units of a layer's mean residual norm.
        layer: The one layer to push beside all of them and the middle one; None for the best-read other layer.
        seed: Seed of sums, directions and held-out problems.
    """

    digits: int
    sums: int
    alphas: Sequence[float]
    layer: int | None
    seed: int

    @property
    def largest(self) -> int:
        """The largest sum; larger numbers are not probed."""
        return 2 * int(10**self.digits - 1)

    @property
    def length(self) -> int:
        """Maximum tokens for a sum: one digit more than the numbers, a token before it, and one that ends it."""
        return self.digits + 3


def run_number_probe(options: RunOptions, dataset: str, plan: Plan, reft: str | None = None) -> None:
    """Fits probes, pushes sums along them, and projects adapters' changes on them.

    Args:
        options: The command's settings.
        dataset: A name that `load_problems` knows.
        plan: Plan of the pushes.
        reft: Another adapter, ordinary ReFT, to show beside the first: folder or hub id.
    """
    problems = problems_to_report_on(dataset, options.data_dir)[: options.limit]
    sums = draw_sums(plan.digits, _PROBE_SUMS + plan.sums, plan.seed)
    probe_sums, sums = sums[:_PROBE_SUMS], sums[_PROBE_SUMS:]
    setting = load_setting(options, dataset)
    layers = num_layers(setting.model)
    if plan.layer is not None and not 0 <= plan.layer < layers:
        raise UserError(f"--layer must be one of the model's, 0-{layers - 1}; got {plan.layer}")
    sources = _sources(setting, reft)
    about = about_problems(dataset, test=problems)
    folder = setting.claim(about, reft)

    solver = Solver(setting, options.batch_size)
    forms = [_form_row(solver, probe_sums, form, plan) for form in FORMS]
    form = str(max(forms, key=lambda row: row["correct"])["form"])
    texts = [*problems, *(item.solved(form) for item in probe_sums)]
    sites = _sites(setting)
    fitted = fit_places(setting, texts, sites, plan.largest, plan.seed, folder, options.batch_size)
    readings = [row for place in fitted for row in place["readings"]]
    norms = np.array([place["mean_norm"] for place in fitted if place["site"] == "block"])
    weights = number_directions(folder, layers)
    pushes, thresholds = _push(solver, sums, form, weights, norms, _where(readings, plan.layer), plan, folder)
    changes = {
        source.name: Changes.of(
            measure_changes(setting.decoding, source, problems, weights, folder, options.batch_size), norms
        )
        for source in sources
    }
    leave_process_group()

    tables = {"forms": forms, "probes": readings, "pushes": pushes, "thresholds": thresholds}
    figures = {"probes": probes_figure(readings), "pushes": pushes_figure(pushes, thresholds)}
    if changes:
        breaking = _breaking(thresholds)
        tables |= _change_tables(changes, breaking, norms * np.linalg.norm(weights, axis=1))
        figures["changes"] = changes_figure(tables["changes"], tables["shares"], tables["positions"], breaking)
    others = {source.file: asdict(source.reft_model.prefix_config) for source in sources if source.file == "reft"}
    head = {**about, **others, "form": form, "mean_residual_norm": norms.tolist()}
    _write(folder, tables, figures, {**setting.provenance(), **head})
    best = max(row["accuracy"] for row in forms)
    if best < _GOOD_ACCURACY:
        print(f"no prompt form reaches {_GOOD_ACCURACY:.0%}: unpushed, the best ({form}) solves {best:.1%} of the sums")
    print(f"tables, figures, probes and records: {folder}")


def _sources(setting: EvaluationContext, reft: str | None) -> list[ActingAdapter]:
    if setting.reft_model is None:
        return []
    gate = parse_gate(str(setting.options.gate))
    if isinstance(gate, PromptOnly) or gate == TokenGate(0):
        raise UserError(f"changes are measured while tokens are drawn; --gate must be open then, got {gate}")
    sources = [ActingAdapter("always on", "always-on", setting.reft_model, "always")]
    if not isinstance(gate, AlwaysOn):
        sources.append(ActingAdapter(f"gate {gate}", "gated", setting.reft_model, str(gate)))
    if reft is not None:
        other = load_beside(setting, reft)
        sources.append(ActingAdapter("ReFT, always on", "reft", other, "always"))
    return sources


def _sites(setting: EvaluationContext) -> list[str]:
    """Returns the residual stream, and the adapter's site if that has another width."""
    own = [] if setting.adapter is None else [setting.adapter.site]
    width = site_width(setting.model, "block")
    return ["block", *(site for site in own if site_width(setting.model, site) != width)]


def _form_row(solver: Solver, sums: Sequence[Sum], form: str, plan: Plan) -> TableRow:
    answers = solver.solve(solver.prompts(sums, form), plan.length, {})
    return form_row(form, answers, [item.result for item in sums])


def _where(readings: Sequence[TableRow], layer: int | None) -> dict[str, tuple[int, ...]]:
    """Returns all layers, the middle one, and the chosen one or else the best-read layer other than the middle."""
    kind = {"site": "block", "reads": "number", "target": "identity", "where": "all", "place": "all"}
    r2 = {row["layer"]: row["r2"] for row in readings if kind.items() <= row.items()}
    middle = len(r2) // 2
    others = {number: value for number, value in r2.items() if number != middle} or r2
    chosen = max(others, key=lambda number: others[number]) if layer is None else layer
    return {"all layers": tuple(r2), **{f"layer {number}": (number,) for number in (middle, chosen)}}


def _push(
    solver: Solver,
    sums: Sequence[Sum],
    form: str,
    weights: Array,
    norms: Array,
    where: Mapping[str, tuple[int, ...]],
    plan: Plan,
    folder: Path,
) -> tuple[list[TableRow], list[TableRow]]:
    """Returns the rows of ``pushes.csv`` and of ``thresholds.csv``."""
    pusher = Pusher.draw(weights, norms, _DRAWS, plan.seed)
    signed = sorted({0.0, *plan.alphas, *(-alpha for alpha in plan.alphas)})
    pushes = [
        Push(name, layers, direction, alpha)
        for (name, layers), direction, alpha in product(where.items(), _DIRECTIONS, signed)
    ]
    # Without a push all layers' curves share one result.
    distinct = list({push.id: push for push in pushes}.values())
    path = folder / "records" / "pushes.jsonl"
    answers = solve_pushed(solver, solver.prompts(sums, form), distinct, pusher, plan.length, path)
    truths = [item.result for item in sums]
    rows = []
    for push in pushes:
        drawn = pusher.drawn[push.direction]
        along = (norms * (weights * drawn).sum(axis=2))[:, list(push.layers)].sum(axis=1)
        rows.append(push_row(push, answers[push.id], truths, len(drawn), norms, float(along.mean())))
    wrong = {name: wrong_sums(found, truths) for name, found in answers.items()}
    return rows, threshold_rows([push for push in pushes if push.alpha], wrong, norms)


def _breaking(thresholds: Sequence[TableRow]) -> dict[str, float | None]:
    """Returns by sign the breaking point of a push of all layers along their probes, to compare all changes with."""
    kind = {"where": "all layers", "direction": "probe"}
    return {row["sign"]: row["threshold"] for row in thresholds if kind.items() <= row.items()}


def _change_tables(
    changes: Mapping[str, Changes], breaking: Mapping[str, float | None], slopes: Array
) -> dict[str, list[TableRow]]:
    shares = [share_rows(source, item, breaking["-"], breaking["+"]) for source, item in changes.items()]
    positions = [position_rows(source, item, slopes) for source, item in changes.items()]
    return {
        "shares": [row for rows in shares for row in rows],
        "changes": list(histogram_rows(changes)),
        "positions": [row for rows in positions for row in rows],
    }


def _write(
    folder: Path, tables: Mapping[str, list[TableRow]], figures: Mapping[str, Figure], head: Mapping[str, Any]
) -> None:
    """Writes every table as CSV, every figure, and the shorter tables also in the results."""
    for name, rows in tables.items():
        write_csv(folder / f"{name}.csv", rows)
    for name, figure in figures.items():
        write_figure(folder, name, figure)
    short = {name: rows for name, rows in tables.items() if name in ("forms", "pushes", "thresholds", "shares")}
    short["probes"] = [row for row in tables["probes"] if row["where"] == row["place"] == "all"]
    write_json(folder / RESULTS_NAME, {**head, **short})
    short["probes"] = [row for row in short["probes"] if (row["reads"], row["target"]) == ("number", "identity")]
    for name in ("forms", "probes", "thresholds", "shares"):
        if name in short:
            header, *body = lines(short[name])
            print_table(name, header, body)
