"""Runs ``eval/faithfulness.py``: its measurements in order, and its output."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from interventions.gates import AlwaysOn, PromptOnly, TokenGate, parse_gate
from interventions.sites import check_site
from reft_math.commands.options.evaluation import RunOptions
from reft_math.commands.output_folder import RESULTS_NAME
from reft_math.commands.processes import leave_process_group
from reft_math.commands.resumable import record_rows
from reft_math.data.fingerprint import about_problems
from reft_math.data.registry import problems_to_report_on
from reft_math.errors import UserError
from reft_math.experiments.figures.faithfulness import heads_figure, positions_figure
from reft_math.files.atomic import write_csv, write_json
from reft_math.files.plots import write_figure
from reft_math.files.tables import lines, print_table
from reft_math.probes.number import held_out
from reft_math.probes.number_measures import ActingAdapter
from reft_math.probes.statements import encode_pairs, givens, probe_set, results
from reft_math.probes.truth import ALL, BASE, RESIDUAL, fit_layers, probe_rows, score_pairs, score_rows
from reft_math.scoring.context import EvaluationContext, load_beside, load_setting

_FEWEST = 8  # three folds of two for fitting, and two held out
_STATEMENTS = {"givens": givens, "results": results}


def run_faithfulness(options: RunOptions, dataset: str, statements: str, seed: int, reft: str | None = None) -> None:
    """Fits truth probes on the base and reads them under each source's interventions.

    Args:
        options: The command's settings.
        dataset: A name that `load_problems` knows.
        statements: ``givens`` or ``results``, as in `reft_math.probes.statements`.
        seed: Seed of wrong numbers and held-out problems.
        reft: Another adapter, ordinary ReFT, to show beside the first: folder or hub id.
    """
    problems = problems_to_report_on(dataset, options.data_dir)[: options.limit]
    usable = [problem for problem in problems if _STATEMENTS[statements](problem)]
    _check_enough(len(usable), len(problems), dataset)
    setting = load_setting(options, dataset)
    check_site(setting.model, "attn_o")
    sources = _sources(setting, reft)
    about = about_problems(dataset, test=problems)
    folder = setting.claim(about, reft)
    records, batch_size = folder / "records", options.batch_size

    tokenizer, decoding = setting.decoding.tokenizer, setting.decoding
    rows = probe_set(
        usable, _STATEMENTS[statements], lambda text: len(tokenizer.encode(text, add_special_tokens=False)), seed
    )
    record_rows(
        rows, lambda _: 0, lambda _, missing: list(map(asdict, missing)), records / "probe_set.jsonl", "probe set", 100
    )
    pairs = encode_pairs(rows, decoding)
    is_held_out = held_out([pair.problem for pair in pairs], seed)
    to_fit, to_score = ([pairs[index] for index in np.flatnonzero(which)] for which in (~is_held_out, is_held_out))
    probes = fit_layers(setting.model, to_fit, folder, batch_size)
    scored = {}
    for name, file, source in ((BASE, "base", None), *((source.name, source.file, source) for source in sources)):
        path = records / f"scores-{file}.jsonl"
        scored[name] = score_pairs(
            setting.model, source, setting.options.handoff, to_score, probes, path, name, batch_size
        )
    leave_process_group()
    tables = {"probes": probe_rows(scored[BASE]), "scores": score_rows(scored)}
    others = {source.file: asdict(source.reft_model.prefix_config) for source in sources if source.file == "reft"}
    counts = {"problems": len(problems), "left_out": len(problems) - len(usable), "pairs": len(pairs)}
    _write(folder, tables, f"{dataset}, {statements}", counts, {**setting.provenance(), **about, **others})


def _write(
    folder: Path, tables: dict[str, Any], title: str, counts: dict[str, int], provenance: dict[str, Any]
) -> None:
    """Writes tables, figures and results, and prints what they say of the residual stream."""
    for name, table in tables.items():
        write_csv(folder / f"{name}.csv", table)
    figures = {"heads": heads_figure(**tables), "positions": positions_figure(tables["scores"])}
    for name, figure in figures.items():
        write_figure(folder, name, figure)
    short = {name: [row for row in table if row["head"] == RESIDUAL] for name, table in tables.items()}
    short["scores"] = [row for row in short["scores"] if row["position"] == ALL]
    titled = {
        f"{title}: truth probes of the residual stream on held-out questions": lines(short["probes"]),
        f"{title}: score of true less false statements in log-odds, residual stream": lines(short["scores"]),
    }
    write_json(folder / RESULTS_NAME, {**provenance, **counts, **short})
    for heading, (header, *body) in titled.items():
        print_table(heading, header, body)
    print(f"{counts['left_out']} of {counts['problems']} problems left out: they state no number that could be changed")
    if not any(row["reads"] for row in tables["probes"]):
        print("no probe tells true from false better than chance: what moves their scores says nothing of truth")
    print(f"tables, figures, probes and records: {folder}")


def _check_enough(usable: int, problems: int, dataset: str) -> None:
    if usable < _FEWEST:
        raise UserError(
            f"truth probes need at least {_FEWEST} problems that state a number; {dataset} has {usable} of {problems}:"
            " take a larger --limit, another --dataset or other --statements"
        )


def _sources(setting: EvaluationContext, reft: str | None) -> list[ActingAdapter]:
    """Returns the adapter always on, for its trained number of tokens, and under its gate, without duplicates."""
    if setting.reft_model is None:
        return []
    assert setting.adapter is not None
    gate = parse_gate(str(setting.options.gate))
    if isinstance(gate, PromptOnly):
        raise UserError("gate prompt draws no tokens with interventions; pass --gate kl:NATS or tokens:N")
    sources = [ActingAdapter("always on", "always-on", setting.reft_model, "always")]
    prefix = None if setting.adapter.k is None else TokenGate(setting.adapter.k)
    if prefix is not None:
        sources.append(ActingAdapter(f"prefix, {prefix}", "prefix", setting.reft_model, str(prefix)))
    if gate not in (prefix, AlwaysOn(), TokenGate(0)):
        sources.append(ActingAdapter(f"gated, {gate}", "gated", setting.reft_model, str(gate)))
    if reft is not None:
        sources.append(ActingAdapter("ReFT, always on", "reft", load_beside(setting, reft), "always"))
    return sources
