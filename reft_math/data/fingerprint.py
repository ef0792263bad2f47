"""Fingerprints of rows, kept in results and output folders to detect other rows under the same name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from reft_math.data.problem import Problem
from reft_math.data.regression_rows import RegressionRow


def rows_sha256(rows: Iterable[Sequence[str | float]]) -> str:
    """Returns the SHA-256 of the rows as sorted lines of JSON, independent of their source and order."""
    lines = sorted(json.dumps(list(row)) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _digest_in_order(rows: Iterable[Sequence[str | float]]) -> str:
    """Returns the SHA-256 of the rows in their order, since ids may count them and training draws them by position."""
    return rows_sha256((place, *row) for place, row in enumerate(rows))


def fingerprint(problems: Sequence[Problem]) -> dict[str, Any]:
    """Returns the number of problems and the `rows_sha256` of question and answer, of question, answer and solution,
    and of all these with ids, in order."""
    return {
        "rows": len(problems),
        "sha256": rows_sha256((problem.question, problem.answer) for problem in problems),
        "with_solutions": rows_sha256((problem.question, problem.answer, problem.solution) for problem in problems),
        "in_order": _digest_in_order((row.id, row.question, row.answer, row.solution) for row in problems),
    }


def about_problems(dataset: str, **splits: Sequence[Problem]) -> dict[str, Any]:
    """Returns the data set's name and the fingerprint of each split's rows, for the head of results."""
    return {"dataset": dataset, "fingerprints": {name: fingerprint(problems) for name, problems in splits.items()}}


def regression_fingerprint(rows: Sequence[RegressionRow]) -> dict[str, Any]:
    """Returns the number of rows, the `rows_sha256` of text and target, and one of ids, texts and targets in order."""
    return {
        "rows": len(rows),
        "sha256": rows_sha256((row.text, row.target) for row in rows),
        "in_order": _digest_in_order((row.id, row.text, row.target) for row in rows),
    }
