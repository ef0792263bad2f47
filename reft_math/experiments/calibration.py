"""Chooses a gate on validation problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from reft_math.commands.options.evaluation import RunOptions
from reft_math.commands.output_folder import RESULTS_NAME
from reft_math.commands.processes import leave_process_group
from reft_math.data.fingerprint import about_problems
from reft_math.data.registry import problems_to_choose_by
from reft_math.errors import UserError
from reft_math.files.atomic import write_json
from reft_math.files.tables import print_table
from reft_math.models.adapter_card import renew_gate
from reft_math.scoring.context import load_setting
from reft_math.scoring.evaluate import Scorer, is_numeric
from reft_math.scoring.gate_choice import (
    GATE_COLUMNS,
    KL_GATES,
    best_gate,
    evaluate_gates,
    gate_rows,
    gate_table,
    noise_line,
    read_gates,
    tie_note,
)
from reft_math.scoring.rounding import noise_floor


def run_calibration(options: RunOptions, dataset: str, gates: Sequence[str] | None, save: bool) -> None:
    """Evaluates gates on the validation split and reports the best.

    Args:
        options: The command's settings, with an adapter.
        dataset: A name that `load_problems` knows.
        gates: Candidates, as text; KL gates by default.
        save: Make the best one the default of the adapter, which must be a folder.
    """
    if save and not Path(str(options.adapter)).is_dir():
        raise UserError(f"--save writes into the adapter's folder; {options.adapter} is none")
    problems = problems_to_choose_by(dataset, options.data_dir)[: options.limit]
    if not problems:
        raise UserError(f"{dataset} has no validation problems to choose a gate by; take another --dataset")
    setting, gates = load_setting(options, dataset), read_gates(gates or KL_GATES)
    assert setting.adapter is not None
    about = about_problems(dataset, validation=problems)
    folder = setting.claim(about)
    with Scorer(is_numeric(dataset, problems)) as score:
        found = evaluate_gates(
            gates, problems, setting.completers(gates), score, folder / "records", options.batch_size
        )
    leave_process_group()
    best = best_gate(found)
    assert setting.reft_model is not None
    noise = noise_floor(setting.reft_model, setting.decoding, problems, options.batch_size)
    results = {
        **about,
        "best": best,
        "gates": found,
        "noise_floor": noise,
        "score_tables": gate_table(found, best),
    }
    write_json(folder / RESULTS_NAME, {**setting.provenance(), **results})
    title = f"{dataset}, {len(problems)} validation problems, greedy; * is the best gate"
    print_table(title, GATE_COLUMNS, gate_rows(found, best))
    if (note := tie_note(found)) is not None:
        print(note)
    print(noise_line(noise))
    if save:
        replace(setting.adapter, gate=best).save_pretrained(str(options.adapter))
        renew_gate(Path(str(options.adapter)), setting.adapter.gate, best)
        print(f"{options.adapter}: the default gate is {best} now, it was {setting.adapter.gate}")
    print(f"results: {folder / RESULTS_NAME}")
