"""MATH-500: 500 competition problems held out of MATH (Lightman et al. 2023, arXiv:2305.20050)."""

from __future__ import annotations

from reft_math.data.problem import Problem
from reft_math.data.rows import HubDataset, HubSource, Row


def parse(row: Row, problem_id: str) -> Problem:
    """Parses a row: the answer is LaTeX, e.g. ``"\\frac{1}{2}"``; ``subject`` and ``level`` (1-5) go to the metadata.

    Raises:
        UserError: If a field is missing or of another type.
    """
    metadata = {"subject": row.text("subject"), "level": row.take("level", int)}
    return Problem(problem_id, row.text("problem"), row.text("answer"), row.text("solution"), metadata)


SOURCE = HubSource(
    name="math500",
    files={"test": "test.jsonl"},
    parse=parse,
    hub=HubDataset("HuggingFaceH4/MATH-500", {"test": "test"}),
)
