"""Plot the bias norm of training runs against optimiser steps.

    uv run eval/norm_trace.py --runs results/pid results/note --output-dir results/norm_trace

Writes ``norm_trace.csv``, and the figure (PNG and SVG) and ``results.json`` with overshoot, settling step and
steady-state error (`reft_math.training.tracking`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from reft_math.commands.run import run
from reft_math.errors import require, require_different, require_one_process


@dataclass(frozen=True)
class NormTraceOptions:
    runs: list[str] = field(default_factory=list, metadata={"help": "Output folders of train/prefix_reft.py."})
    output_dir: str = field(default="results/norm_trace", metadata={"help": "Table and figure go here."})
    resume: bool = field(default=False, metadata={"help": "Write table and figure again where they are."})
    overwrite: bool = field(default=False, metadata={"help": "Delete the output folder's run and start anew."})

    def __post_init__(self) -> None:
        require(self, "runs", lambda value: len(value) >= 1, "at least one output folder")
        require_different(self.runs)
        require_one_process("a figure")


def main(options: NormTraceOptions) -> None:
    from reft_math.commands.output_folder import RESULTS_NAME, claim_output_dir
    from reft_math.commands.provenance import provenance
    from reft_math.experiments.figures.norm_trace import bias_norm, norm_trace, trace_rows
    from reft_math.files.atomic import write_csv, write_json
    from reft_math.files.plots import write_figure
    from reft_math.scoring.comparison import Run

    runs = [Run.read(folder) for folder in options.runs]
    rows, figure = trace_rows(runs), norm_trace(runs)
    folder = claim_output_dir(options)
    write_csv(folder / "norm_trace.csv", rows)
    write_figure(folder, "norm_trace", figure)
    about = {str(item.folder): {**bias_norm(item), "trace": None} for item in runs}
    write_json(folder / RESULTS_NAME, {**provenance(options), "bias_norm": about})
    print(f"table and figure: {folder}")


if __name__ == "__main__":
    run(main, NormTraceOptions, __doc__)
