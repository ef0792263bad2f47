"""Make one HTML page from a folder of results: tables, figures, settings, and the command of each run.

    uv run eval/report.py --results results --output report.html
    uv run eval/report.py --quick

The page needs no network and can be read on a phone. ``--quick`` first runs every experiment on the embedded model,
from a checkout: under 30 minutes on two cores, with a line and a log for each. After a stop or failure the same command
resumes. For other models run the commands themselves (README.md), then this one on their folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from reft_math.commands.output_folder import check_output_file
from reft_math.commands.run import run
from reft_math.errors import require_one_process
from reft_math.files.atomic import write_text


@dataclass(frozen=True)
class ReportOptions:
    results: str | None = field(
        default=None, metadata={"help": "Folder that holds the output folders (results; results/quick with --quick)."}
    )
    output: str | None = field(default=None, metadata={"help": "Path of the page (report.html in the results)."})
    quick: bool = field(
        default=False, metadata={"help": "First run every experiment on the embedded model and write to --results."}
    )

    def __post_init__(self) -> None:
        require_one_process("a report")

    @property
    def folder(self) -> Path:
        return Path(self.results or ("results/quick" if self.quick else "results"))

    @property
    def page(self) -> Path:
        return Path(self.output) if self.output else self.folder / "report.html"


def main(options: ReportOptions) -> None:
    check_output_file(options.page)

    from reft_math.commands.provenance import provenance
    from reft_math.experiments.quick import EXPERIMENTS, run_suite
    from reft_math.experiments.report import report_page
    from reft_math.experiments.result_folders import find_result_folders

    if options.quick:
        run_suite(EXPERIMENTS, Path(__file__).resolve().parents[1], options.folder)
    folders = find_result_folders(options.folder)
    page = report_page(folders, f"Results in {options.folder}", provenance(options))
    options.page.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.page, page)
    print(f"page: {options.page} (sections: {len(folders)}, {len(page.encode()) / 1e6:.1f} MB)")


if __name__ == "__main__":
    run(main, ReportOptions, __doc__)
