"""Plots how runs held their norm."""

from __future__ import annotations

from typing import Any

from reft_math.commands.output_folder import RESULTS_NAME, claim_output_dir
from reft_math.commands.provenance import provenance
from reft_math.experiments.figures.norm_trace import bias_norm, norm_trace, trace_rows
from reft_math.files.atomic import write_csv, write_json
from reft_math.files.plots import write_figure
from reft_math.scoring.comparison import Run


def run_norm_trace(options: Any) -> None:
    """Plots how runs held their norm, with the options of ``eval/norm_trace.py``."""
    runs = [Run.read(folder) for folder in options.runs]
    rows, figure = trace_rows(runs), norm_trace(runs)
    folder = claim_output_dir(options)
    write_csv(folder / "norm_trace.csv", rows)
    write_figure(folder, "norm_trace", figure)
    about = {str(item.folder): {**bias_norm(item), "trace": None} for item in runs}
    write_json(folder / RESULTS_NAME, {**provenance(options), "bias_norm": about})
    print(f"table and figure: {folder}")
