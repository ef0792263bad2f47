"""Scores texts token by token, and finds where answers diverge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from interventions.gates import PromptOnly, parse_gate
from reft_math.commands.output_folder import RESULTS_NAME
from reft_math.commands.processes import leave_process_group
from reft_math.commands.resumable import Record
from reft_math.data.fingerprint import about_problems
from reft_math.data.problem import Problem
from reft_math.data.registry import problems_to_report_on
from reft_math.data.templates import encode_target
from reft_math.decoding.completions import CompletionSettings
from reft_math.decoding.teacher_forcing import ForcedText
from reft_math.errors import UserError
from reft_math.experiments.figures.trajectory import trajectory_figure
from reft_math.files.atomic import write_csv, write_json
from reft_math.files.plots import write_figure
from reft_math.files.tables import print_table
from reft_math.probes.answers import answer_all
from reft_math.probes.trajectory import (
    fate_lines,
    fate_table,
    parting_table,
    position_table,
    score_texts,
    total_lines,
    total_table,
)
from reft_math.scoring.context import load_setting
from reft_math.scoring.evaluate import Scorer, is_numeric, score_tables, summarise


def run_trajectory(options: Any) -> None:
    """Scores texts token by token, and finds where answers diverge, with the options of ``eval/trajectory.py``."""
    problems = problems_to_report_on(options.dataset, options.data_dir)[: options.limit]
    setting = load_setting(options, options.dataset)
    gate = parse_gate(str(setting.options.gate))
    if isinstance(gate, PromptOnly):
        raise UserError("gate prompt draws no tokens with interventions; pass --gate kl:NATS or tokens:N")
    assert setting.reft_model is not None  # there is an adapter
    sources = {
        "base": setting.model.generate,
        "always_on": setting.generate("always"),
        "prefix": setting.generate(str(gate)),
    }
    head = about_problems(options.dataset, test=problems)
    folder = setting.claim(head)
    records = folder / "records"
    model, decoding, batch_size = setting.model, setting.decoding, options.batch_size
    with Scorer(is_numeric(options.dataset, problems)) as score:
        answers = answer_all(problems, sources, decoding, model.device, score, records, batch_size)
    scored = {}
    for kind, texts in _texts(problems, answers, decoding).items():
        path, pad_token = records / f"likelihood-{kind}.jsonl", int(decoding.tokenizer.pad_token_id)
        scored[kind] = score_texts(
            texts, model, setting.reft_model, gate, options.handoff, pad_token, path, f"likelihood, {kind}", batch_size
        )
    leave_process_group()
    positions, totals, partings = position_table(scored), total_table(scored), parting_table(answers)
    fates = fate_table(partings)
    for name, table in (("trajectory", positions), ("totals", totals), ("partings", partings)):
        write_csv(folder / f"{name}.csv", table)
    title = f"{options.dataset}, {len(problems)} problems, greedy"
    tables = {
        f"{title}: log-likelihood of whole texts in nats, mean (95 % interval)": total_lines(totals),
        f"{title}: pairs of answers that part, or stay the same, by what became of the two": fate_lines(fates),
    }
    evaluation = {name: summarise(found, answers["base"]) for name, found in answers.items()}
    results = {
        **head,
        "evaluation": evaluation,
        "score_tables": score_tables(evaluation),
        "totals": totals,
        "fates": fates,
    }
    write_json(folder / RESULTS_NAME, {**setting.provenance(), **results})
    figure = trajectory_figure(positions, partings)
    write_figure(folder, "trajectory", figure)
    for title, (header, *body) in tables.items():
        print_table(title, header, body)
    print(f"likelihood by position: {folder / 'trajectory.csv'}, trajectory.png, trajectory.svg")


def _texts(
    problems: Sequence[Problem], answers: Mapping[str, Sequence[Record]], decoding: CompletionSettings
) -> dict[str, list[ForcedText]]:
    """Returns the texts to score: the reference solutions, if there are any, and each decoder's answers."""

    prompts = decoding.prompts([problem.question for problem in problems])
    texts = {
        name: [
            ForcedText(problem.id, prompt, record["token_ids"])
            for problem, prompt, record in zip(problems, prompts, found, strict=True)
        ]
        for name, found in answers.items()
    }
    reference = [
        ForcedText(
            problem.id,
            prompt,
            encode_target(decoding.template, problem.question, problem.solution, decoding.tokenizer),
        )
        for problem, prompt in zip(problems, prompts, strict=True)
        if problem.solution
    ]
    return {"reference": reference, **texts} if reference else texts
