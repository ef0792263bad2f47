"""What rows say, as a digest: results and output folders hold it, so that the same name with other rows is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from reft_math.data.problem import Problem
from reft_math.data.regression_rows import RegressionRow


def rows_sha256(rows: Iterable[Sequence[str | float]]) -> str:
    """SHA-256 of the rows as sorted lines of JSON: of what they say, wherever they were read and in whichever order."""
    lines = sorted(json.dumps(list(row)) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _digest_in_order(rows: Iterable[Sequence[str | float]]) -> str:
    """As `rows_sha256`, but of the rows as they come: ids may count them, and training draws them by their places."""
    return rows_sha256((place, *row) for place, row in enumerate(rows))


def fingerprint(problems: Sequence[Problem]) -> dict[str, Any]:
    """How many problems; `rows_sha256` of question and answer, of question, answer and solution, and of all of these
    and ids in their order."""
    return {
        "rows": len(problems),
        "sha256": rows_sha256((problem.question, problem.answer) for problem in problems),
        "with_solutions": rows_sha256((problem.question, problem.answer, problem.solution) for problem in problems),
        "in_order": _digest_in_order((row.id, row.question, row.answer, row.solution) for row in problems),
    }


def about_problems(dataset: str, **splits: Sequence[Problem]) -> dict[str, Any]:
    """For the head of results: the data set's name, and what the rows of each split say."""
    return {"dataset": dataset, "fingerprints": {name: fingerprint(problems) for name, problems in splits.items()}}


def regression_fingerprint(rows: Sequence[RegressionRow]) -> dict[str, Any]:
    """How many rows, the `rows_sha256` of text and target, and one of ids, texts and targets in their order."""
    return {
        "rows": len(rows),
        "sha256": rows_sha256((row.text, row.target) for row in rows),
        "in_order": _digest_in_order((row.id, row.text, row.target) for row in rows),
    }
