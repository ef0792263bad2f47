"""Evaluates a base or an adapter on problems, and writes records, tables and results."""

from __future__ import annotations

from reft_math.commands.options.evaluation import EvaluationOptions
from reft_math.commands.output_folder import RESULTS_NAME
from reft_math.commands.processes import leave_process_group
from reft_math.data.fingerprint import about_problems
from reft_math.data.registry import problems_to_report_on
from reft_math.files.atomic import write_json
from reft_math.files.tables import print_table
from reft_math.scoring.context import batch_completer, load_setting
from reft_math.scoring.evaluate import (
    SAMPLING_COLUMNS,
    Scorer,
    evaluate,
    is_numeric,
    print_evaluation,
    sampling_rows,
    score_tables,
    summarise,
)


def run_evaluation(options: EvaluationOptions, dataset: str, opener: str = "") -> None:
    """Loads all inputs, claims the output folder, then evaluates: a mistake in the input leaves no files behind.

    Args:
        options: The command's settings.
        dataset: A name that `load_problems` knows.
        opener: Text with which every completion starts.
    """
    problems = problems_to_report_on(dataset, options.data_dir)[: options.limit]
    setting = load_setting(options, dataset, opener)
    complete_rows = batch_completer(setting, options)
    about = about_problems(dataset, test=problems)
    folder = setting.claim(about)

    name = "base" if setting.adapter is None else "adapter"
    path = folder / "records" / f"{name}.jsonl"
    with Scorer(is_numeric(dataset, problems)) as score:
        records = evaluate(
            problems,
            complete_rows,
            score,
            path,
            dataset,
            batch_size=options.batch_size,
            samples=options.samples,
            seed=options.seed if options.sampling else None,
        )
    leave_process_group()
    summary = {**summarise(records), "seconds_per_answer": records.seconds_per_answer}
    results = {**about, "evaluation": {name: summary}, "score_tables": score_tables({name: summary})}
    write_json(folder / RESULTS_NAME, {**setting.provenance(), **results})
    how = "greedy" if options.temperature is None else f"temperature {options.temperature:g}"
    title = f"{dataset}, {len(problems)} problems, {how}, gate {setting.options.gate}"
    print_evaluation(title, {name: summary})
    if options.samples > 1:
        print_table("over problems", SAMPLING_COLUMNS, sampling_rows(summary))
    print(f"results: {folder / RESULTS_NAME}")
