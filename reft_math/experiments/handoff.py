"""Lets the base continue the first k tokens of other decoders."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

from reft_math.commands.output_folder import RESULTS_NAME
from reft_math.commands.processes import leave_process_group
from reft_math.data.fingerprint import about_problems
from reft_math.data.registry import problems_to_report_on
from reft_math.experiments.figures.handoff import handoff_figure
from reft_math.files.atomic import write_csv, write_json
from reft_math.files.plots import write_figure
from reft_math.files.tables import print_table
from reft_math.probes.answers import answer_all
from reft_math.probes.handoff import hand_over, handoff_lines, handoff_table, problem_sets
from reft_math.scoring.context import load_beside, load_setting
from reft_math.scoring.evaluate import Scorer, is_numeric, print_evaluation, score_tables, summarise


def run_handoff(options: Any) -> None:
    """Lets the base continue the first k tokens of other decoders, with the options of ``eval/handoff.py``."""
    problems = problems_to_report_on(options.dataset, options.data_dir)[: options.limit]
    setting = load_setting(options, options.dataset)
    reft = None if options.reft is None else load_beside(setting, options.reft)
    sources = {
        "base": setting.model.generate,
        "always_on": setting.generate("always") if reft is None else partial(reft.generate, gate="always"),
        "prefix": setting.generate(str(setting.options.gate)),
    }
    about = about_problems(options.dataset, test=problems)
    folder = setting.claim(about, options.reft)
    records = folder / "records"
    model, decoding, batch_size = setting.model, setting.decoding, options.batch_size
    with Scorer(is_numeric(options.dataset, problems)) as score:
        answers = answer_all(problems, sources, decoding, model.device, score, records, batch_size)
        handed_over = {}
        for name, found in answers.items():
            path, shown = records / f"{name}-handed-over.jsonl", f"base after {name}"
            handed_over[name] = hand_over(
                problems, found, answers["base"], model, decoding, score, path, shown, batch_size
            )
    leave_process_group()
    sets = problem_sets(answers)
    table = handoff_table(sets, handed_over)
    write_csv(folder / "handoff.csv", table)
    title = f"{options.dataset}: accuracy (95 % interval) if the base goes on after the first k tokens of a source"
    tables = {f"{title}; {name}, n = {len(ids)}": handoff_lines(table, name) for name, ids in sets.items() if ids}
    evaluation = {name: summarise(found, answers["base"]) for name, found in answers.items()}
    results = {
        **about,
        "reft": None if reft is None else asdict(reft.prefix_config),
        "evaluation": evaluation,
        "score_tables": score_tables(evaluation),
        "handoff": table,
    }
    write_json(folder / RESULTS_NAME, {**setting.provenance(), **results})
    figure = handoff_figure(table, sets)
    write_figure(folder, "handoff", figure)
    print_evaluation(f"{options.dataset}, {len(problems)} problems, greedy", evaluation)
    for title, (header, *body) in tables.items():
        print_table(title, header, body)
    print(f"accuracy against k: {folder / 'handoff.csv'}, handoff.png, handoff.svg")
