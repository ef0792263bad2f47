"""SVAMP: 1,000 short word problems, varied so that key words mislead (Patel et al. 2021, arXiv:2103.07191).

The authors publish one file of 1,000 as a challenge set; the hub's copy splits it into 700 and 300. Here all 1,000
are the test split. The copies' orders differ, so ids use the authors' own names (``chal-777``).
"""

from __future__ import annotations

from reft_math.data.problem import Problem
from reft_math.data.rows import HubDataset, HubSource, Row


def parse(row: Row, problem_id: str) -> Problem:
    """Parses a row: ``Body`` and ``Question`` make the question; there is no solution.

    Raises:
        UserError: If a field is missing or of another type.
    """
    question = joined(row.text("Body"), row.text("Question"))
    return Problem(problem_id, question, row.number("Answer"), metadata={"type": row.text("Type")})


def joined(body: str, question: str) -> str:
    """Joins ``body`` and ``question`` into running text.

    A third of the bodies have no full stop, most of them because they end in a condition that the question completes:
    ``If he eats 3`` and ``How many are left?`` become ``If he eats 3, how many are left?``.
    """
    if body[-1] in ".?!":
        return f"{body} {question}"
    if body.split(". ")[-1].startswith("If "):
        return f"{body}, {question[0].lower()}{question[1:]}"
    return f"{body}. {question}"


SOURCE = HubSource(
    name="svamp",
    files={"test": "test.jsonl"},
    parse=parse,
    hub=HubDataset("ChilleD/SVAMP", {"test": "train+test"}),
    id_field="ID",
)
