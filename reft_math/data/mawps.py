"""MAWPS as LLM-Adapters evaluates on it: 238 short word problems (Koncel-Kedziorski et al. 2016; arXiv:2304.01933).

The well-known copies on the hub have other splits, or placeholders instead of numbers: no copy is known to match.
"""

from __future__ import annotations

from reft_math.data.problem import Problem
from reft_math.data.rows import HubSource, Row


def parse(row: Row, problem_id: str) -> Problem:
    """Parses a row: ``instruction`` is the question; there is no solution.

    Raises:
        UserError: If a field is missing or of another type.
    """
    return Problem(problem_id, row.text("instruction"), row.number("answer"))


SOURCE = HubSource(name="mawps", files={"test": "test.json"}, parse=parse)
