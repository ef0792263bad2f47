from __future__ import annotations

import json
from pathlib import Path

import pytest

from reft_math.data.registry import load_problems
from reft_math.errors import UserError
from reft_math.scoring.elsewhere import final_answer, read_generations


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("72", "72"),
        ("1,234", "1234"),
        ("$18", "18"),
        ("He has 3 + 4 = 7.\n#### 7", "7"),
        ("#### 1,234,567.5\n", "1234567.5"),
        (r"So $x=\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (
            r"First \boxed{1}, then \boxed{\left\{ \text{all of } \{1,2\} \right.}",
            r"\left\{ \text{all of } \{1,2\} \right.",
        ),
        ("#### \\boxed{-3}", "-3"),
        (r"$\frac{3}{4}$", r"\frac{3}{4}"),
        ("1,2", "1,2"),  # two answers, not twelve
        (r"\boxed{5", r"\boxed{5"),
    ],
)
def test_the_final_answer_is_read_from_solutions(gold: str, answer: str) -> None:
    assert final_answer(gold) == answer


@pytest.mark.parametrize(("dataset", "mark"), [("gsm8k", "#### "), ("math500", r"\boxed{")])
def test_reads_the_answers_of_the_real_solutions(shared_data: Path, dataset: str, mark: str) -> None:
    """The answers that the sources give beside their solutions, or that our own reader takes from them."""
    problems = load_problems(dataset, "test", data_dir=str(shared_data))
    assert all(mark in problem.solution for problem in problems)
    assert [final_answer(problem.solution) for problem in problems] == [
        final_answer(problem.answer) for problem in problems
    ]


def test_reads_what_other_tools_write(tmp_path: Path) -> None:
    """A byte order mark, blank lines, CRLF, numbers as gold, further fields, an empty completion."""
    rows = [
        {"id": 7, "question": " Zwölf? ", "gold": 12.0, "completion": "", "model": "x"},
        {"question": "Half?", "gold": "0.5", "completion": "0.5\n"},
    ]
    text = "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path = tmp_path / "made.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_generations(path) == [
        {"id": f"{path}, line 1", "question": "Zwölf?", "gold": "12", "completion": ""},
        {"id": f"{path}, line 3", "question": "Half?", "gold": "0.5", "completion": "0.5\n"},
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"question": "a", "gold": "1"}', 'line 2: field "completion" is missing; the row has question, gold'),
        ('{"question": "a", "gold": true, "completion": ""}', 'line 2: field "gold" must be a string or a number'),
        ('{"question": "a", "gold": "####", "completion": ""}', 'line 2: field "gold" must hold an answer'),
        ('{"question": " ", "gold": 1, "completion": ""}', 'line 2: field "question" must not be empty'),
        ('{"question": "a", "gold": 1, "completion": ["1"]}', 'line 2: field "completion" must be a string'),
        ('{"question": "a",', "line 2: must be JSON"),
    ],
)
def test_a_wrong_row_is_refused_with_its_line(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "made.jsonl"
    path.write_text('{"question": "so many", "gold": 1, "completion": "1"}\n' + row + "\n")
    with pytest.raises(UserError) as error:
        read_generations(path)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{path}, line 2")
    assert "\n" not in str(error.value)
