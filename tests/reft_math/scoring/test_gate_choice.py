from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from interventions.gates import parse_gate
from reft_math.data.problem import Problem
from reft_math.scoring.gate_choice import KL_GATES, best_gate, evaluate_gates, gate_records, gate_rows, tie_note

PROBLEMS = [Problem(f"p/{index}", f"{index}?", str(index)) for index in range(4)]


def right_for(count: int, closing: int | None) -> Any:
    def complete(questions: Sequence[str], seed: int | None) -> list[dict[str, Any]]:
        rows = ({"completion": text[0] if int(text[0]) < count else "wrong"} for text in questions)
        return [{**row, "num_tokens": 3, "finished": True, "closing_position": closing} for row in rows]

    return complete


def score(pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"correct": gold == completion} for gold, completion in pairs]


def test_gates_are_evaluated_each_with_records_of_its_own(tmp_path: Path) -> None:
    completers = {"kl:1": right_for(1, 0), "kl:1,min=1": right_for(3, 1), "kl:inf": right_for(2, None)}
    found = evaluate_gates(list(completers), PROBLEMS, completers.__getitem__, score, tmp_path, batch_size=3)
    assert {gate: summary["correct"] for gate, summary in found.items()} == {"kl:1": 1, "kl:1,min=1": 3, "kl:inf": 2}
    assert [summary["median_closing_position"] for summary in found.values()] == [0, 1, None]
    assert [summary["never_closed"] for summary in found.values()] == [0, 0, 4]
    assert best_gate(found) == "kl:1,min=1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kl-1-min-1.jsonl", "kl-1.jsonl", "kl-inf.jsonl"]
    assert gate_rows(found, "kl:1")[0][0] == "kl:1 *"
    again = evaluate_gates(list(completers), PROBLEMS, lambda gate: None, score, tmp_path, batch_size=3)  # type: ignore[arg-type,return-value]
    assert again == found, "finished rows are not done again"


def test_of_equal_gates_the_last_is_best() -> None:
    counts = {"kl:0.5": 3, "kl:1": 4, "kl:2": 4, "kl:4": 2}
    assert best_gate({gate: {"correct": count} for gate, count in counts.items()}) == "kl:2"


@pytest.mark.parametrize(("correct", "is_told"), [([0, 0, 0], True), ([2, 2, 1], False), ([1], False)])
def test_a_choice_between_gates_that_are_all_as_good_is_told(correct: list[int], is_told: bool) -> None:
    note = tie_note({f"kl:{number}": {"correct": count, "total": 2} for number, count in enumerate(correct)})
    assert (note is not None) == is_told
    assert note is None or note.startswith("note: all gates have 0 of 2 right, so the last was taken")


def test_the_usual_candidates_have_files_of_their_own_and_come_in_the_order_they_close() -> None:
    assert len({gate_records(Path(), gate) for gate in KL_GATES}) == len(KL_GATES)
    thresholds = [parse_gate(gate).threshold for gate in KL_GATES]  # type: ignore[attr-defined]
    assert thresholds == sorted(thresholds)
