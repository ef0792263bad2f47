"""Evaluates a base or a regressor over its grid."""

from __future__ import annotations

import dataclasses
from typing import Any

from reft_math.commands.output_folder import RESULTS_NAME
from reft_math.commands.processes import claim, leave_process_group
from reft_math.commands.provenance import provenance
from reft_math.data.fingerprint import regression_fingerprint
from reft_math.data.regression_rows import check_split, drawn, load_split
from reft_math.errors import UserError
from reft_math.files.atomic import write_json
from reft_math.files.tables import print_table
from reft_math.regression.build import load_base, load_regressor
from reft_math.regression.config import RegressorConfig
from reft_math.regression.evaluation import (
    EVALUATION_COLUMNS,
    SampledAnswers,
    evaluate_regressor,
    summarise,
    table_rows,
)
from reft_math.regression.job import default_grid


def run_regression_evaluation(options: Any) -> None:
    """Evaluates a base or a regressor over its grid, with the options of ``eval/regression.py``."""

    if options.data is not None:
        check_split(options.data, "train")
    if options.regressor is None:
        options = dataclasses.replace(options, data=options.data or "original1")
        config = RegressorConfig(
            grid=options.grid or default_grid(str(options.data)),
            template=options.template or "auto",
            prompt=options.prompt or "ours",
            base_model=options.model or "arithmetic",
            base_revision=options.revision,
        )
        name, regressor = "base", load_base(config, options)
    else:
        name, regressor = "tuned", load_regressor(options.regressor, options.revision, options)
        options = dataclasses.replace(options, data=options.data or regressor.regressor_config.data)
        if options.data is None:
            raise UserError(f"{options.regressor} does not say what it was trained on; pass --data")
    config = regressor.regressor_config
    rows = drawn(load_split(str(options.data), options.split, options.data_dir, config.prompt), options.limit)
    fingerprints = {str(options.split): regression_fingerprint(rows)}
    folder = claim(options, fingerprints)
    writing = SampledAnswers(options.samples, options.temperature, options.default, options.seed)
    evaluation = {}
    while True:
        path = folder / "records" / f"{name}.jsonl"
        evaluation[name] = summarise(evaluate_regressor(regressor, rows, path, name, options.batch_size, writing))
        if name == "base" or not options.base:
            break
        del regressor  # two whole models may not fit
        name, regressor = "base", load_base(config, options)
    leave_process_group()
    results = {"regressor": dataclasses.asdict(config), "predictor": config.predictor, "evaluation": evaluation}
    marked = "" if options.regressor is None else f"tuned/{config.predictor}"
    lines = table_rows(evaluation, marked)
    results["score_tables"] = {"evaluation" + (", * was trained" if marked else ""): [EVALUATION_COLUMNS, *lines]}
    write_json(folder / RESULTS_NAME, {**provenance(options), "fingerprints": fingerprints, **results})
    title = f"{options.data}, {len(rows)} {options.split} rows" + ("; * is what was trained" if marked else "")
    print_table(title, EVALUATION_COLUMNS, lines)
    for name, summary in evaluation.items():
        if summary["entropy"] is not None:
            print(f"entropy over the grid, mean over rows, {name}: {summary['entropy']['mean']:.2f} nats")
    print(f"results: {folder / RESULTS_NAME}")
