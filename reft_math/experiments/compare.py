"""Compares runs in a table and a figure, with outcomes by problem."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from reft_math.commands.output_folder import RESULTS_NAME, claim_output_dir
from reft_math.commands.provenance import provenance
from reft_math.data.fingerprint import rows_sha256
from reft_math.experiments.figures.comparison import comparison_figure
from reft_math.files.atomic import write_csv, write_json, write_text
from reft_math.files.plots import write_figure
from reft_math.files.tables import print_table
from reft_math.scoring.comparison import (
    COMPARISON_COLUMNS,
    COST_COLUMNS,
    SCORE_COLUMNS,
    TRAINING_COLUMNS,
    cells,
    comparison_rows,
    outcomes,
)
from reft_math.scoring.elsewhere import ELSEWHERE, numeric_scoring, read_entries, rescored, turn_notes, with_turns
from reft_math.scoring.lengths import LENGTH_TITLE
from reft_math.scoring.pairing import check_templates, paired, reference_of, scored_otherwise, unchecked


def run_compare(options: Any) -> None:
    """Compares runs in a table and a figure, with outcomes by problem, with the options of ``eval/compare.py``."""
    entries = read_entries(options.runs)
    against = reference_of(entries, options.against).name
    check_templates({entry.name: entry.template for entry in entries}, options.any_template)
    entries = paired(entries, options.shared_only)
    is_numeric = numeric_scoring(entries, options.scoring)
    entries, turns = with_turns(entries, options.first_turn)
    folder = claim_output_dir(options)
    before, entries = entries, rescored(entries, is_numeric)
    rows = comparison_rows(entries, against)

    write_csv(folder / "comparison.csv", rows)
    problems = f"{rows[0]['total']} problems{' that all runs share' if options.shared_only else ''}"
    scoring = "compared as numbers" if is_numeric else "compared by math-verify"
    title = f"{problems}, answers {scoring}, p against {against}"
    lines = [cells(row) for row in rows]
    (folder / "records").mkdir(exist_ok=True)
    write_text(folder / "records" / "comparison.jsonl", _lines(outcomes(entries)))
    for number, entry in enumerate(entry for entry in entries if entry.decoder == ELSEWHERE):
        path = folder / "records" / f"elsewhere-{number}-{entry.source.stem}.jsonl"
        write_text(path, _lines(entry.records.values()))
    compared = rows_sha256((record["question"], record["gold"]) for record in entries[0].records.values())
    results = {
        "against": against,
        "is_numeric": is_numeric,
        "templates": {entry.run: entry.template for entry in entries},
        "fingerprints": {"test": {"rows": rows[0]["total"], "sha256": compared}},
        "turns": turns,
        "comparison": rows,
    }
    write_json(folder / RESULTS_NAME, {**provenance(options), **results})
    figure = comparison_figure(rows, against)
    write_figure(folder, "comparison", figure)

    # One table would be too wide for a terminal.
    start = 2
    for name, columns in (("trained on", TRAINING_COLUMNS), (title, SCORE_COLUMNS), (LENGTH_TITLE, COST_COLUMNS)):
        end = start + len(columns)
        print_table(name, COMPARISON_COLUMNS[:2] + columns, [line[:2] + line[start:end] for line in lines])
        start = end
    notes = (*unchecked(entries), *turn_notes(turns, options.first_turn), *scored_otherwise(before, entries))
    for note in notes:
        print(note)
    print(f"table, figure and outcomes: {folder}")


def _lines(records: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)
