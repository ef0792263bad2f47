"""Runs ``eval/error_analysis.py``: first errors of wrong solutions, and places of false equations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import median
from typing import Any, get_args

import numpy as np

from reft_math.commands.output_folder import RESULTS_NAME, claim_output_dir
from reft_math.commands.provenance import provenance
from reft_math.data.templates import without_thoughts
from reft_math.experiments.figures.error_analysis import error_figure
from reft_math.files.atomic import write_csv, write_json, write_text
from reft_math.files.plots import write_figure
from reft_math.files.tables import print_table
from reft_math.probes.equations import Equation, equations
from reft_math.probes.solution_errors import Kind, first_error
from reft_math.scoring.comparison import Entry, Record
from reft_math.scoring.elsewhere import numeric_scoring, read_entries, rescored
from reft_math.scoring.statistics import bootstrap_interval, times_drawn, wilson_interval

KINDS: tuple[Kind, ...] = get_args(Kind)
_PARTS = 4  # of equal length in a solution

TableRow = dict[str, Any]


def run_error_analysis(options: Any, runs: Sequence[str]) -> None:
    """Writes tables, figure and records of the runs' wrong solutions.

    Args:
        options: The command's settings.
        runs: Folders and files for `read_entries`.
    """
    entries = read_entries(runs)
    as_numbers = numeric_scoring(entries, "auto")
    folder = claim_output_dir(options)
    entries = rescored(entries, as_numbers)
    wrong = [wrong_solutions(entry) for entry in entries]
    errors = [row for entry, found in zip(entries, wrong, strict=True) for row in error_rows(entry, found)]
    shares = equation_rows(entries)
    positions = [row for entry in entries for row in position_rows(entry)]

    write_csv(folder / "errors.csv", errors)
    write_csv(folder / "equations.csv", shares)
    write_csv(folder / "positions.csv", positions)
    (folder / "records").mkdir(exist_ok=True)
    lines = (json.dumps(row) + "\n" for found in wrong for row in found)
    write_text(folder / "records" / "errors.jsonl", "".join(lines))
    write_figure(folder, "errors", error_figure(errors, positions))
    tables = {"errors": errors, "equations": shares, "positions": positions}
    write_json(folder / RESULTS_NAME, {**provenance(options), **tables})
    print_table("what wrong solutions get wrong first", _COLUMNS, _cells(errors))
    print_table("equations in all solutions, right or wrong", _EQUATION_COLUMNS, _equation_cells(shares))
    print(f"tables, figure and records: {folder}")


def wrong_solutions(entry: Entry) -> list[TableRow]:
    """Returns each wrong solution's first error and its place: in characters, as a share, and about in tokens."""
    rows = []
    for record in entry.records.values():
        if record["correct"]:
            continue
        text = without_thoughts(record["completion"])
        error = first_error(record["question"], text, _has_answer(record))
        place: TableRow = dict.fromkeys(("character", "share_of_text", "token"))
        if error.start is not None:
            share = error.start / len(text)
            tokens = record.get("num_tokens")
            place = {"character": error.start, "share_of_text": share, "token": tokens and round(share * tokens)}
        about = {"id": record["id"], "run": entry.run, "decoder": entry.decoder}
        rows.append({**about, "kind": error.kind, "text": error.text, **place})
    return rows


def _has_answer(record: Record) -> bool:
    """Returns whether a solution ended by itself with an answer that could be scored."""
    return record.get("finished", True) and record.get("last_number", record.get("prediction", "")) is not None


def error_rows(entry: Entry, wrong: Sequence[TableRow]) -> list[TableRow]:
    """Returns each kind's share of the wrong solutions with its 95 % Wilson interval, and its median place."""
    rows = []
    for kind in KINDS:
        found = [row for row in wrong if row["kind"] == kind]
        about = {"run": entry.run, "decoder": entry.decoder, "problems": len(entry.records), "wrong": len(wrong)}
        medians = {name: _median([row[name] for row in found]) for name in ("character", "share_of_text", "token")}
        rows.append({**about, "kind": kind, **_share(len(found), len(wrong)), **medians})
    return rows


def equation_rows(entries: Sequence[Entry]) -> list[TableRow]:
    """Compares each decoder's share of false equations with the first decoder's, on the problems of both.

    The share is ``Σ_i false_i / Σ_i equations_i`` over solutions i, right or wrong. Its interval resamples problems,
    since the equations of one solution depend on each other. Without an equation the shares are None. ``ten_times`` and
    ``tenth`` count false equations whose right side is a power of ten too large or too small.
    """
    stated = [{key: _stated(record) for key, record in entry.records.items()} for entry in entries]
    rows = []
    for entry, mine in zip(entries, stated, strict=True):
        shared = sorted(mine.keys() & stated[0].keys())
        both = [_counts(found[key]) for key in shared for found in (stated[0], mine)]
        slips = [equation.decimal_slip for key in shared for equation in mine[key]]
        rows.append(
            {
                **{"run": entry.run, "decoder": entry.decoder, "problems": len(shared)},
                **_compared(np.array(both).reshape(-1, 4)),
                **{"ten_times": sum(slip > 0 for slip in slips), "tenth": sum(slip < 0 for slip in slips)},
            }
        )
    return rows


def _stated(record: Record) -> list[Equation]:
    return equations(without_thoughts(record["completion"]))


def _counts(found: Sequence[Equation]) -> tuple[int, int]:
    """Returns the numbers of equations and of false ones."""
    return len(found), sum(not equation.is_true for equation in found)


def _compared(counts: np.ndarray) -> TableRow:
    """Returns the second decoder's counts, its share and the difference from the first's, with intervals.

    Args:
        counts: ``(problem, 4)``: equations and false ones of the first decoder, then of the second.
    """

    def shares(sums: np.ndarray) -> np.ndarray:
        first, second = sums[:, 1] / sums[:, 0], sums[:, 3] / sums[:, 2]
        return np.stack([second, second - first])

    sums = counts.sum(axis=0)
    row = {"equations": int(sums[2]), "count": int(sums[3])}
    names = ("share", "low", "high", "difference", "difference_low", "difference_high")
    if not (sums[0] and sums[2]):
        return {**row, **dict.fromkeys(names)}
    share, difference = shares(sums[None])[:, 0]
    low, high = bootstrap_interval(lambda drawn: shares(times_drawn(drawn) @ counts), len(counts))
    values = (share, low[0], high[0], difference, low[1], high[1])
    return {**row, **dict(zip(names, map(float, values), strict=True))}


def position_rows(entry: Entry) -> list[TableRow]:
    """Counts equations and false equations by part of a solution, right or wrong."""
    counts = [[0, 0] for _ in range(_PARTS)]
    for record in entry.records.values():
        text = without_thoughts(record["completion"])
        for equation in _stated(record):
            part = counts[equation.start * _PARTS // len(text)]
            part[0] += 1
            part[1] += not equation.is_true
    return [
        {
            **{"run": entry.run, "decoder": entry.decoder, "from": part / _PARTS, "to": (part + 1) / _PARTS},
            **{"equations": total, **_share(false, total)},
        }
        for part, (total, false) in enumerate(counts)
    ]


def _share(count: int, total: int) -> TableRow:
    low, high = wilson_interval(count, total) if total else (None, None)
    return {"count": count, "share": count / total if total else None, "low": low, "high": high}


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


_EQUATION_COLUMNS = ("", "problems", "equations", "false", "share", "minus the first's", "10^k too large, too small")


def _equation_cells(shares: Sequence[TableRow]) -> list[list[str]]:
    rows = []
    for row in shares:
        share = difference = "-"
        if row["share"] is not None:
            share = f"{row['share']:.1%} ({row['low']:.1%} to {row['high']:.1%})"
            difference = f"{row['difference']:+.1%} ({row['difference_low']:+.1%} to {row['difference_high']:+.1%})"
        counts = [str(row[name]) for name in ("problems", "equations", "count")]
        slips = f"{row['ten_times']}, {row['tenth']}"
        rows.append([f"{row['run']}:{row['decoder']}", *counts, share, difference, slips])
    return rows


_COLUMNS = ("", "problems", "wrong", *KINDS, "first false equation at")


def _cells(errors: Sequence[TableRow]) -> list[list[str]]:
    rows = []
    for start in range(0, len(errors), len(KINDS)):
        first, *_ = by_kind = errors[start : start + len(KINDS)]
        shares = [str(row["count"]) + (f" ({row['share']:.0%})" if first["wrong"] else "") for row in by_kind]
        token = "" if first["token"] is None else f", token {first['token']:.0f}"
        place = "-" if first["share_of_text"] is None else f"{first['share_of_text']:.0%}{token}"
        rows.append([f"{first['run']}:{first['decoder']}", str(first["problems"]), str(first["wrong"]), *shares, place])
    return rows
