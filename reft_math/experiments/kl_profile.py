"""Measures the divergence of the two models along completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reft_math.commands.options.evaluation import RunOptions
from reft_math.commands.output_folder import RESULTS_NAME
from reft_math.commands.processes import leave_process_group
from reft_math.data.fingerprint import about_problems
from reft_math.data.registry import problems_to_report_on
from reft_math.experiments.figures.kl_profile import kl_profile_figure
from reft_math.files.atomic import write_csv, write_json
from reft_math.files.plots import write_figure
from reft_math.files.records import RecordFile
from reft_math.files.tables import print_table
from reft_math.scoring.context import load_setting
from reft_math.scoring.evaluate import Scorer, is_numeric
from reft_math.scoring.gate_choice import GATE_COLUMNS, evaluate_gates, gate_records, gate_rows, gate_table, read_gates


def kl_profile(records: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Returns per position t the rows that measured ``D_t``, its mean and quantiles, the mean of ``C_t``; in nats.

    Args:
        records: Evaluation records with ``kl``.
    """
    longest = max(len(record["kl"]) for record in records)
    table = np.full((len(records), longest), np.nan)
    for row, record in zip(table, records, strict=True):
        row[: len(record["kl"])] = record["kl"]
    bands = np.array([[record.get("dead_band", 0.0)] for record in records])
    cumulative = np.nancumsum((table - bands).clip(min=0), axis=1)
    return [
        {
            "position": position,
            "rows": len(values),
            "mean": values.mean(),
            **dict(zip(("25 %", "median", "75 %", "95 %"), np.quantile(values, (0.25, 0.5, 0.75, 0.95)), strict=True)),
            "mean of C": cumulative[~np.isnan(table[:, position]), position].mean(),
        }
        for position in range(longest)
        for values in [table[~np.isnan(table[:, position]), position]]
    ]


def profile_gates(summaries: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns for each gate accuracy with its 95 % interval, closing positions, and the number of rows still open.

    Args:
        summaries: From `reft_math.scoring.gate_choice.evaluate_gates`.
    """
    rows = []
    for gate, summary in summaries.items():
        low, high = summary["interval_95"]
        counts = {name: summary[name] for name in ("correct", "total", "accuracy")}
        closings = {name: value for name, value in summary.items() if "clos" in name}
        rows.append({"gate": gate, **counts, "low": low, "high": high, **closings})
    return rows


def run_kl_profile(options: RunOptions, dataset: str, gates: Sequence[str]) -> None:
    """Measures the divergence of always-on completions by position, and the accuracy of gates.

    Args:
        options: The command's settings, with an adapter.
        dataset: A name that `load_problems` knows.
        gates: Gates, as text.
    """
    problems = problems_to_report_on(dataset, options.data_dir)[: options.limit]
    gates, setting = read_gates(gates), load_setting(options, dataset)
    about = about_problems(dataset, test=problems)
    folder = setting.claim(about)
    records = folder / "records"
    with Scorer(is_numeric(dataset, problems)) as score:
        every_gate = ["off", *gates, "kl:inf"]
        completer = setting.completers(every_gate)
        found = evaluate_gates(every_gate, problems, completer, score, records, options.batch_size)
    leave_process_group()
    always_on = RecordFile(gate_records(records, "kl:inf")).done
    # In the problems' order: the file's order depends on timing, and the last digits of a mean on the order.
    profile = kl_profile([always_on[problem.id] for problem in problems])
    tables = {"gates": profile_gates(found), "kl_profile": profile}
    for name, table in tables.items():
        write_csv(folder / f"{name}.csv", table)
    results = {**about, "gates": found, "kl_profile": profile, "score_tables": gate_table(found)}
    write_json(folder / RESULTS_NAME, {**setting.provenance(), **results})
    levels = {"always on": found["kl:inf"], "base": found["off"]}
    figure = kl_profile_figure(profile, {gate: found[gate] for gate in gates}, levels)
    write_figure(folder, "kl_profile", figure)
    print_table(f"{dataset}, {len(problems)} problems, greedy", GATE_COLUMNS, gate_rows(found))
    print(f"divergence by position: {folder / 'kl_profile.csv'}, kl_profile.png, kl_profile.svg")
