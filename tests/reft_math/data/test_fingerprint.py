from __future__ import annotations

import hashlib
from dataclasses import replace

from reft_math.data.fingerprint import about_problems, fingerprint, regression_fingerprint, rows_sha256
from reft_math.data.problem import Problem
from reft_math.data.regression_rows import RegressionRow

PROBLEMS = [Problem("a", "How many?", "3", "1+2=3"), Problem("b", "Wie viele, Jörg?", "4", "2+2=4")]


def test_the_digest_is_that_of_sorted_lines_of_json() -> None:
    lines = '["How many?", "3"]\n["Wie viele, J\\u00f6rg?", "4"]'
    assert (
        rows_sha256((problem.question, problem.answer) for problem in PROBLEMS)
        == hashlib.sha256(lines.encode()).hexdigest()
    )


def test_names_and_order_count_in_order_only_and_every_word_does() -> None:
    whole = fingerprint(PROBLEMS)
    assert whole["rows"] == 2
    assert fingerprint([replace(PROBLEMS[0], metadata={"level": 5}), PROBLEMS[1]]) == whole
    for same in (PROBLEMS[::-1], [replace(PROBLEMS[0], id="x"), PROBLEMS[1]]):
        found = fingerprint(same)
        assert found.pop("in_order") != whole["in_order"]
        assert found == {name: value for name, value in whole.items() if name != "in_order"}
    for changed in ({"question": "How many? "}, {"answer": "3.0"}):
        other = fingerprint([replace(PROBLEMS[0], **changed), PROBLEMS[1]])
        assert all(other[name] != whole[name] for name in ("sha256", "with_solutions", "in_order"))
    other = fingerprint([replace(PROBLEMS[0], solution="3"), PROBLEMS[1]])
    assert other["sha256"] == whole["sha256"]
    assert all(other[name] != whole[name] for name in ("with_solutions", "in_order"))
    assert fingerprint([*PROBLEMS, PROBLEMS[0]])["sha256"] != whole["sha256"]


def test_no_two_rows_run_into_one() -> None:
    assert rows_sha256([("a", "b")]) != rows_sha256([("ab", "")])
    assert rows_sha256([("a",), ("b",)]) != rows_sha256([('a"]\n["b',)])


def test_every_split_has_its_own() -> None:
    about = about_problems("gsm8k", train=PROBLEMS, test=PROBLEMS[:1])
    assert about["dataset"] == "gsm8k"
    assert {name: found["rows"] for name, found in about["fingerprints"].items()} == {"train": 2, "test": 1}


def test_a_target_is_part_of_a_row() -> None:
    rows = [RegressionRow("a", "text", 1.0)]
    first, renamed = regression_fingerprint(rows), regression_fingerprint([RegressionRow("b", "text", 1.0)])
    assert first["sha256"] == renamed["sha256"]
    assert first["in_order"] != renamed["in_order"]
    assert first["sha256"] != regression_fingerprint([RegressionRow("a", "text", 1.5)])["sha256"]
