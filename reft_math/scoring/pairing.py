"""Prepares a paired test: the same problems, golds and prompts, and a decoder to test against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from reft_math.errors import UserError
from reft_math.scoring.comparison import Entry
from reft_math.scoring.elsewhere import ELSEWHERE
from reft_math.scoring.math_equivalence import MathVerifier


def reference_of(entries: Sequence[Entry], against: str | None) -> Entry:
    """Returns the entry to test the others against: ``RUN:DECODER`` with the run's path, by default the first.

    Raises:
        UserError: It is not among the entries.
    """
    if against is None:
        return entries[0]
    source, _, decoder = against.rpartition(":")
    own = {entry.decoder: entry for entry in entries if entry.source.resolve() == Path(source).resolve()}
    if not own:
        raise UserError(f"--against must be RUN:DECODER with one of --runs; got {against}: is its run among them?")
    if decoder not in own:
        raise UserError(f"{source} has no decoder {decoder!r}; it has {', '.join(own)}")
    return own[decoder]


def paired(entries: Sequence[Entry], shared_only: bool) -> list[Entry]:
    """Returns entries with records of the same problems in the same order.

    Args:
        entries: At least one.
        shared_only: Leave out problems that some entries lack.

    Raises:
        UserError: Some have other problems and ``shared_only`` is false, they share none, or the same question has
            different golds.
    """
    first, *others = entries
    shared = [key for key in first.records if all(key in entry.records for entry in others)]
    odd = next((entry for entry in others if entry.records.keys() != first.records.keys()), None)
    if odd is not None and not (shared_only and shared):
        both = len(first.records.keys() & odd.records.keys())
        way_out = "pass --shared-only to compare on those" if shared else "questions must be as in the data set"
        raise UserError(
            f"a paired test needs the same problems; {odd.name} has {len(odd.records)}, {first.name}"
            f" {len(first.records)}, of which {both} are the same, and {len(shared)} are shared by all: {way_out}"
        )
    found = [replace(entry, records={key: entry.records[key] for key in shared}) for entry in entries]
    _check_golds(found)
    return found


def check_templates(templates: Mapping[str, str | None], any_template: bool) -> None:
    """Raises `UserError` if prompts differ: then the test would also compare prompts.

    Args:
        templates: Templates by the run's name; None if unknown.
        any_template: Allow differences.
    """
    known = {template: name for name, template in templates.items() if template is not None}
    if len(known) > 1 and not any_template:
        shown = ", ".join(f"{name} has {template}" for template, name in known.items())
        raise UserError(
            f"a paired test needs the same prompt template; {shown}: pass --any-template to compare them all the same"
        )


def unchecked(entries: Sequence[Entry]) -> list[str]:
    """Returns a line for each property that could not be compared because some runs lack it."""
    own = [entry for entry in entries if entry.decoder != ELSEWHERE]
    silent = {
        "the prompt template is not known, and not compared": [entry for entry in entries if entry.template is None],
        "made by a version that kept no digest of the problems; paired by their questions": [
            entry for entry in own if entry.sha256 is None
        ],
    }
    runs = {what: ", ".join(dict.fromkeys(entry.run for entry in found)) for what, found in silent.items() if found}
    return [f"note: {names}: {what}" for what, names in runs.items()]


def scored_otherwise(before: Sequence[Entry], after: Sequence[Entry]) -> list[str]:
    """Returns a line for each entry whose recorded verdicts differ from this version's.

    Args:
        before: Entries as they were read.
        after: The same, as they are compared.
    """
    scored = [(old, new) for old, new in zip(before, after, strict=True) if old.is_scored]
    changes = [(new, sum(a != b for a, b in zip(old.correct, new.correct, strict=True))) for old, new in scored]
    return [
        f"note: {entry.name}: {number} of {len(entry.correct)} recorded verdicts are another version's; the table is"
        " of the recorded completions, scored by this one"
        for entry, number in changes
        if number
    ]


def _check_golds(entries: Sequence[Entry]) -> None:
    """Requires equal golds by text or math-verify: ``72`` and ``72.0``, ``\\frac12`` and ``\\frac{1}{2}``."""
    first, *others = entries
    differing = [
        (entry, key, str(first.records[key]["gold"]), str(record["gold"]))
        for entry in others
        for key, record in entry.records.items()
        if record["gold"] != first.records[key]["gold"]
    ]
    with MathVerifier() as verifier:
        verdicts = verifier.score([(gold, f"${other}$") for _, _, gold, other in differing])
    for (entry, (question, _), gold, other), verdict in zip(differing, verdicts, strict=True):
        if not verdict.is_correct:
            raise UserError(
                f"a paired test needs the same gold answers; to {question[:60]!r} {first.name} has {gold[:40]!r},"
                f" {entry.name} {other[:40]!r}: are these different versions of the data set?"
            )
