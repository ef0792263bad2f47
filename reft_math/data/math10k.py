"""MATH10K: LLM-Adapters' training problems with solutions (Hu et al. 2023, arXiv:2304.01933), and one's own files.

A file given as ``--dataset FILE`` has MATH10K's fields (instruction, input, output, answer) or question, answer and,
but for training by reward, solution.
"""

from __future__ import annotations

from pathlib import Path

from reft_math.data.problem import Problem
from reft_math.data.rows import HubDataset, HubSource, Row, file_rows


def parse(row: Row, problem_id: str) -> Problem:
    """Parses a row: ``instruction``, and ``input`` unless blank, make the question; ``output`` is the solution.

    Raises:
        UserError: If a field is missing or of another type.
    """
    context = row.take("input", str).strip() if "input" in row.fields else ""
    question = f"{row.text('instruction')}\n{context}".rstrip()
    return Problem(problem_id, question, row.answer("answer"), row.text("output"))


def own_problems(path: Path) -> list[Problem]:
    """Reads the problems of the user's own file; ``my_data.jsonl`` gives the ids ``"my_data/train/0"`` and so on.

    Raises:
        UserError: If the file cannot be read or one of its rows is malformed.
    """
    return [_own_problem(row, f"{path.stem}/train/{row.index}") for row in file_rows(path)]


def _own_problem(row: Row, problem_id: str) -> Problem:
    if "instruction" in row.fields:
        return parse(row, problem_id)
    solution = row.text("solution") if "solution" in row.fields else ""
    return Problem(problem_id, row.text("question"), row.answer("answer"), solution)


SOURCE = HubSource(
    name="math10k",
    files={"train": "train.json"},
    parse=parse,
    hub=HubDataset("lmms-lab/Math10K", {"train": "train"}),
)
