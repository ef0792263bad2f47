"""The main table: what runs were trained on, their accuracy, and the exact McNemar test against the first.

    uv run eval/compare.py --runs results/prefix-reft results/lora
    uv run eval/compare.py --runs results/prefix-reft results/lora --against results/lora:lora
    uv run eval/compare.py --runs results/gsm8k elsewhere.jsonl --first-turn --output-dir results/compare-elsewhere

``data_num`` counts training problems, ``prefix`` the solution tokens trained on, ``tracking`` is the bias norm's error
against its target, ``strict`` counts stated answers, ``flexible`` last numbers, ``p`` is McNemar's, ``only first`` and
``only this`` count the problems that one alone solved. Tokens an answer, and how many more or less than the first's to
the same problems (``against first``), have 95 % intervals bootstrapped over problems.

Runs over different problems, or with different prompt templates, are refused unless ``--shared-only`` or
``--any-template`` says that it is meant.

Completions made elsewhere, rows of {"question", "gold", "completion"}, are scored as our own are. Those that repeat
their prompt or go on with further turns are counted; ``--first-turn`` scores their first answer alone. Problems are
paired by question, and where a data set asks one twice in its order. Writes ``comparison.csv``, the
figure (PNG and SVG), outcomes by problem and the scores of completions made elsewhere (``records/``), and
``results.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from reft_math.commands.run import run
from reft_math.errors import require, require_different, require_one_process


@dataclass(frozen=True)
class CompareOptions:
    runs: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Output folders of training and evaluation commands, and .jsonl or .json files of completions made"
            " elsewhere."
        },
    )
    against: str | None = field(
        default=None,
        metadata={
            "help": "RUN:DECODER, one of the runs, that p-values are against; a file's decoder is elsewhere (the first"
            " run's first)."
        },
    )
    shared_only: bool = field(default=False, metadata={"help": "Compare on the problems that all runs have."})
    any_template: bool = field(default=False, metadata={"help": "Compare runs with different prompts, too."})
    scoring: Literal["auto", "numeric", "math"] = field(
        default="auto",
        metadata={
            "help": "How completions made elsewhere are scored: auto is as the folders are, and without folders as"
            " numbers where every gold is one."
        },
    )
    first_turn: bool = field(
        default=False,
        metadata={
            "help": "Score the first answer only of completions made elsewhere that repeat their prompt or run on."
        },
    )
    output_dir: str = field(default="results/compare", metadata={"help": "Table, figure and outcomes go here."})
    resume: bool = field(default=False, metadata={"help": "Write table and figure again where they are."})
    overwrite: bool = field(default=False, metadata={"help": "Delete the output folder's run and start anew."})

    def __post_init__(self) -> None:
        require(self, "runs", lambda value: len(value) >= 1, "at least one output folder or file")
        require_different(self.runs)
        require_one_process("a comparison")


def main(options: CompareOptions) -> None:
    from reft_math.commands.output_folder import RESULTS_NAME, claim_output_dir
    from reft_math.commands.provenance import provenance
    from reft_math.data.fingerprint import digest
    from reft_math.experiments.figures.comparison import comparison_figure
    from reft_math.files.atomic import write_csv, write_json, write_text
    from reft_math.files.plots import write_figure
    from reft_math.files.tables import print_table
    from reft_math.scoring.comparison import (
        COLUMNS,
        COST_COLUMNS,
        SCORE_COLUMNS,
        TRAINING_COLUMNS,
        cells,
        comparison_rows,
        outcomes,
    )
    from reft_math.scoring.elsewhere import ELSEWHERE, numeric_scoring, read_entries, rescored, turn_notes, with_turns
    from reft_math.scoring.lengths import LENGTH_TITLE
    from reft_math.scoring.pairing import check_templates, not_known, paired, reference_of, scored_otherwise

    entries = read_entries(options.runs)
    against = reference_of(entries, options.against).name
    check_templates({entry.name: entry.template for entry in entries}, options.any_template)
    entries = paired(entries, options.shared_only)
    is_numeric = numeric_scoring(entries, options.scoring)
    entries, turns = with_turns(entries, options.first_turn)
    folder = claim_output_dir(options)
    before, entries = entries, rescored(entries, is_numeric)
    rows = comparison_rows(entries, against)

    write_csv(folder / "comparison.csv", rows)
    problems = f"{rows[0]['total']} problems{' that all runs share' if options.shared_only else ''}"
    scoring = "compared as numbers" if is_numeric else "compared by math-verify"
    title = f"{problems}, answers {scoring}, p against {against}"
    lines = [cells(row) for row in rows]
    (folder / "records").mkdir(exist_ok=True)
    write_text(folder / "records" / "comparison.jsonl", _lines(outcomes(entries)))
    for number, entry in enumerate(entry for entry in entries if entry.decoder == ELSEWHERE):
        path = folder / "records" / f"elsewhere-{number}-{entry.source.stem}.jsonl"
        write_text(path, _lines(entry.records.values()))
    compared = digest((record["question"], record["gold"]) for record in entries[0].records.values())
    results = {
        "against": against,
        "is_numeric": is_numeric,
        "templates": {entry.run: entry.template for entry in entries},
        "fingerprints": {"test": {"rows": rows[0]["total"], "sha256": compared}},
        "turns": turns,
        "comparison": rows,
    }
    write_json(folder / RESULTS_NAME, {**provenance(options), **results})
    figure = comparison_figure(rows, against)
    write_figure(folder, "comparison", figure)

    # One table would be too wide for a terminal.
    start = 2
    for name, columns in (("trained on", TRAINING_COLUMNS), (title, SCORE_COLUMNS), (LENGTH_TITLE, COST_COLUMNS)):
        end = start + len(columns)
        print_table(name, COLUMNS[:2] + columns, [line[:2] + line[start:end] for line in lines])
        start = end
    notes = (*not_known(entries), *turn_notes(turns, options.first_turn), *scored_otherwise(before, entries))
    for note in notes:
        print(note)
    print(f"table, figure and outcomes: {folder}")


def _lines(records: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


if __name__ == "__main__":
    run(main, CompareOptions, __doc__)
