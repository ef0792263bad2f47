"""Selects training solutions that a model wrote itself: its right samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Keep = Literal["all", "shortest"]


def right_solutions(records: Sequence[Mapping[str, Any]], keep: Keep) -> list[dict[str, Any]]:
    """Returns rows for ``--dataset FILE``, one for each solution kept, in the order of the records.

    A solution is kept if its answer is right and it ended by itself: a truncated one has no end to learn. Equal texts
    of a problem count once.

    Args:
        records: Records of `evaluation.evaluate`, one for each sample.
        keep: Every right solution, or for each problem the one with the fewest tokens, the first of tied ones.

    Returns:
        ``question``, ``solution``, ``answer``, ``problem`` (its id), ``num_tokens``.
    """
    by_problem: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for record in records:
        if record["correct"] and record["finished"]:
            problem, solution = record.get("problem", record["id"]), record["completion"].strip()
            row = {
                "question": record["question"],
                "solution": solution,
                "answer": record["gold"],
                "problem": problem,
                "num_tokens": record["num_tokens"],
            }
            by_problem[problem].setdefault(solution, row)
    if keep == "shortest":
        return [min(rows.values(), key=lambda row: row["num_tokens"]) for rows in by_problem.values()]
    return [row for rows in by_problem.values() for row in rows.values()]


def solution_yield(records: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarises how many samples could be used.

    Args:
        records: Records, one for each sample.
        rows: Rows that `right_solutions` kept.
    """
    problems = {record.get("problem", record["id"]) for record in records}
    lengths = [row["num_tokens"] for row in rows]
    return {
        "problems": len(problems),
        "samples": len(records),
        "right": sum(bool(record["correct"]) for record in records),
        "cut_off": sum(not record["finished"] for record in records),
        "problems_solved": len({row["problem"] for row in rows}),
        "kept": len(rows),
        "mean_tokens_kept": sum(lengths) / len(lengths) if lengths else None,
    }
