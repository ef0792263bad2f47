"""The common type for rows of all data sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One problem with its reference.

    Attributes:
        id: Stable name of the row within its data set and split, e.g. ``"gsm8k/test/17"``; records and resumed runs
            refer to it.
        question: The problem as a person would read it, without a prompt template.
        answer: The final answer alone, e.g. ``"18"`` or ``"\\frac{1}{2}"``.
        solution: A worked solution that ends with the answer, or ``""`` if the source has none.
        metadata: Other information of the source on the row (level, subject, number of steps, …).
    """

    id: str
    question: str
    answer: str
    solution: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
