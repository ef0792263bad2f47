"""Finishes a run of prefix training: chooses the gate, evaluates, writes results and card, and prints them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from interventions.gates import AlwaysOn, parse_gate
from reft_math.commands.processes import leave_process_group
from reft_math.files.tables import print_table
from reft_math.models.adapter_card import write_adapter_card
from reft_math.models.card import CARD_NAME, parameters_sha256
from reft_math.scoring.gate_choice import GATE_COLUMNS, gate_rows, noise_line, tie_note
from reft_math.training import job as jobs
from reft_math.training import prefix_training
from reft_math.training.card import notes_beside
from reft_math.training.prefix_training import PrefixJob
from reft_math.training.relative_size import size_line


def finish(prefix: PrefixJob, more: Mapping[str, Any] | None = None, notes: Sequence[str] = ()) -> None:
    """Chooses the gate, if none was named, and evaluates base, adapter and, under another gate, always on.

    Args:
        prefix: A trained run.
        more: Results of its own kind of training.
        notes: Lines to print after the table.
    """
    options, job, model = prefix.options, prefix.job, prefix.model
    calibration = prefix_training.calibrate(prefix) if prefix.calibrates else None
    own = "reft" if options.is_ordinary else "prefix"
    decoders = {"base": job.model.generate, own: model.generate}
    if not isinstance(parse_gate(model.gate), AlwaysOn):
        decoders["always_on"] = partial(model.generate, gate="always")
    evaluation = jobs.evaluate_all(job, decoders)
    results = prefix_training.summary(prefix)
    leave_process_group()
    noise = prefix_training.noise(prefix) if prefix.calibrates else None
    if calibration is not None:
        title = f"gates on {options.eval_dataset}'s validation split; * is the adapter's default"
        print_table(title, GATE_COLUMNS, gate_rows(calibration, model.gate))
        if (note := tie_note(calibration)) is not None:
            print(note)
    if noise is not None:
        print(noise_line(noise))
    lines = [
        *prefix_training.norm_lines(results["bias_norm"], options.norm_control, job.model.dtype),
        size_line(str(options.site), results["relative_size"]["mean"]),
        *notes,
    ]
    if evaluation is not None and (p := evaluation[own]["mcnemar_vs_base"]["p_value"]) > 0.05:
        lines.append(
            f"note: the adapter under its gate is not told apart from the base (p = {p:.2g}); if training was short,"
            " more epochs or a higher learning rate may change that"
        )
    adapter = Path(options.output_dir) / "adapter"
    results |= {"calibration": calibration, "noise_floor": noise, "parameters": parameters_sha256(adapter)}
    jobs.report(job, evaluation, {**results, **(more or {})}, *lines)
    (adapter / CARD_NAME).unlink(missing_ok=True)  # written on saving, without results and gate
    write_adapter_card(adapter, notes_beside(adapter))
