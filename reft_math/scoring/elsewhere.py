"""Reads and scores completions made elsewhere, a JSONL file of ``{question, gold, completion}``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from reft_math.data.problem import Problem
from reft_math.data.rows import Row, file_rows
from reft_math.errors import UserError
from reft_math.scoring.comparison import Entry, Run, by_problem, run_names
from reft_math.scoring.evaluate import Scorer, is_numeric, scored_again
from reft_math.scoring.numeric import number_alone
from reft_math.scoring.turns import first_turns

ELSEWHERE = "elsewhere"  # the decoder of completions made elsewhere

_BRACE = re.compile(r"\\[{}]|[{}]")
_DIGITS = re.compile("-?[0-9.,]+")


def read_entries(sources: Sequence[str]) -> list[Entry]:
    """Returns the entries of a comparison, those from files without scores yet.

    Runs are named by `run_names`.

    Args:
        sources: Output folders, and files for `read_generations`.

    Raises:
        UserError: One of them is neither, or cannot be read.
    """
    entries: list[Entry] = []
    for source, name in zip(sources, run_names(sources), strict=True):
        path = Path(source)
        if path.is_file():
            if path.suffix.lower() not in (".jsonl", ".json"):
                raise UserError(f"completions made elsewhere come in a .jsonl or .json file; got {path}: convert it")
            entries.append(Entry(path, name, ELSEWHERE, {}, by_problem(read_generations(path))))
        else:
            entries += Run.read(source).entries(name)
    return entries


def read_generations(path: Path) -> list[dict[str, Any]]:
    """Reads one record per row, without a score: its place as ``id``, ``question``, ``gold`` and ``completion``.

    Args:
        path: ``.jsonl``, one object per line, or ``.json``, a list of objects. Other fields are ignored. ``gold`` is
            text or a number, the answer alone or a solution from which `final_answer` reads it.

    Raises:
        UserError: The file or one of its rows cannot be read.
    """
    return [_record(row) for row in file_rows(path)]


def with_turns(entries: Sequence[Entry], cut: bool) -> tuple[list[Entry], dict[str, dict[str, int]]]:
    """Returns entries, and for each made elsewhere the number of completions that repeat their prompt or run on.

    Args:
        entries: Entries; those made elsewhere have no scores yet.
        cut: Keep only the first answer of such completions.

    Returns:
        The counts are ``echoes``, ``run_on`` and ``total``, by the entry's name.
    """
    found, counts = [], {}
    for entry in entries:
        if entry.decoder == ELSEWHERE:
            records = entry.records
            turns = first_turns([(record["question"], record["completion"]) for record in records.values()])
            counts[entry.name] = {
                "echoes": sum(turn.is_echo for turn in turns),
                "run_on": sum(turn.runs_on for turn in turns),
                "total": len(turns),
            }
            if cut:
                keyed = zip(records.items(), turns, strict=True)
                entry = replace(
                    entry, records={key: {**record, "completion": turn.text} for (key, record), turn in keyed}
                )
        found.append(entry)
    return found, counts


def turn_notes(counts: Mapping[str, Mapping[str, int]], cut: bool) -> list[str]:
    """Returns a line for each entry of `with_turns` that has such completions."""
    what = "only the first answer is scored" if cut else "all of it is scored; --first-turn scores the first answer"
    return [
        f"note: {name}: of {count['total']} completions {count['echoes']} repeat their prompt and {count['run_on']} go"
        f" on with further turns: {what}"
        for name, count in counts.items()
        if count["echoes"] or count["run_on"]
    ]


def final_answer(text: str) -> str:
    r"""Returns the text after the last ``####``, and within it the content of the last ``\boxed{…}``, if present.

    Dollar signs around it are removed; a number has no thousands separators and a decimal point.
    """
    answer = _last_boxed(text.rpartition("####")[2]).strip("$ \t\r\n")
    number = number_alone(answer) if _DIGITS.fullmatch(answer) else None
    return answer if number is None else number


def numeric_scoring(entries: Sequence[Entry], scoring: str) -> bool:
    """Returns whether answers are compared as numbers.

    Args:
        entries: Entries scored in one way, or not yet.
        scoring: ``numeric``, ``math`` or ``auto``: like the scored ones, or without any as numbers if every gold is a
            number.

    Raises:
        UserError: Entries are scored differently from ``scoring`` or from each other, or a gold is not a number.
    """
    scored = {entry.name: "numeric" if entry.is_numeric else "math" for entry in entries if entry.is_scored}
    wanted = scoring if scoring != "auto" else next(iter(scored.values()), "auto")
    if odd := next((name for name, way in scored.items() if way != wanted), None):
        origin = next(iter(scored)) if scoring == "auto" else "--scoring"
        raise UserError(
            f"a paired test needs one way of scoring; {odd} has {scored[odd]}, {origin} {wanted}: leave one of them out"
        )
    unscored = [record for entry in entries if not entry.is_scored for record in entry.records.values()]
    problems = [Problem(record["id"], record["question"], record["gold"]) for record in unscored]
    if wanted == "auto":
        return is_numeric("", problems)
    other = next((problem for problem in problems if not is_numeric("", [problem])), None)
    if wanted == "numeric" and other is not None:
        raise UserError(
            f'{other.id}: numeric scoring needs a number as "gold", got {other.answer[:60]!r};'
            " score other answers with --scoring math"
        )
    return wanted == "numeric"


def rescored(entries: Sequence[Entry], as_numbers: bool) -> list[Entry]:
    """Scores entries without scores, and rescores numeric ones wherever a completion is recorded."""
    with Scorer(as_numbers) as score:
        return [entry if entry.is_scored and not as_numbers else _rescored(entry, score) for entry in entries]


def _rescored(entry: Entry, score: Scorer) -> Entry:
    records = scored_again([dict(record) for record in entry.records.values()], score)
    return replace(entry, records=dict(zip(entry.records, records, strict=True)))


def _record(row: Row) -> dict[str, Any]:
    gold = final_answer(row.answer("gold"))
    if not gold:
        raise row.error(f'field "gold" must hold an answer, got {row.answer("gold")[-60:]!r}')
    # Not `text` for the completion: an empty one is allowed and counts as wrong.
    completion = row.take("completion", str)
    return {"id": row.place, "question": row.text("question"), "gold": gold, "completion": completion}


def _last_boxed(text: str) -> str:
    r"""Returns the content of the last ``\boxed{…}``, with matched braces; the whole text without a box."""
    _, mark, rest = text.rpartition(r"\boxed{")
    depth = 1
    for brace in _BRACE.finditer(rest if mark else ""):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return rest[: brace.start()]
    return text
