"""GSM8K: grade-school word problems with worked solutions (Cobbe et al. 2021, arXiv:2110.14168)."""

from __future__ import annotations

import re

from reft_math.data.problem import Problem
from reft_math.data.rows import HubDataset, HubSource, Row

_CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
_FINAL_LINE = re.compile(r"^####\s*(\S.*)\Z", re.MULTILINE)


def parse(row: Row, problem_id: str) -> Problem:
    """A row's ``answer`` is the solution; its last line ``#### N`` gives the answer ``N``, without commas.

    The marks ``<<48/2=24>>`` are calls of a calculator that no model here has: the solution goes without them.

    Raises:
        UserError: If a field is missing or the last line is not ``#### N`` with a number N.
    """
    solution = _CALCULATOR_MARK.sub("", row.text("answer"))
    final = _FINAL_LINE.search(solution)
    if final is None:
        last_line = solution.splitlines()[-1]
        raise row.error(f'field "answer" must end with a line "#### N", got {last_line[:60]!r}')
    return Problem(problem_id, row.text("question"), row.checked_number("answer", final[1].strip()), solution)


SOURCE = HubSource(
    name="gsm8k",
    files={"train": "train.jsonl", "test": "test.jsonl"},
    parse=parse,
    hub=HubDataset("openai/gsm8k", {"train": "train", "test": "test"}, config="main"),
)
