"""Show completions of a few problems token by token, coloured by the divergence from the base, on one HTML page.

    uv run eval/token_view.py --adapter results/prefix-reft/adapter --gate kl:2

It shows the base, the adapter under its gate, and the adapter always on side by side. The page needs no network.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from reft_math.commands.options.evaluation import ModelOptions
from reft_math.commands.output_folder import check_output_file
from reft_math.commands.run import run
from reft_math.errors import require, require_one_process


@dataclass(frozen=True)
class TokenViewOptions(ModelOptions):
    dataset: str = field(default="arithmetic", metadata={"help": "Name of a data set, or a .json or .jsonl file."})
    problems: int = field(default=5, metadata={"help": "Show the first N problems."})
    output: str = field(default="results/token_view.html", metadata={"help": "Path of the page."})

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = "an adapter's folder or hub id, such as results/prefix-reft/adapter, which train/prefix_reft.py writes"
        require(self, "adapter", lambda value: value is not None, rule)
        require(self, "problems", lambda value: value >= 1, "at least 1")
        require_one_process("a page")


def main(options: TokenViewOptions) -> None:
    check_output_file(Path(options.output))

    from reft_math.experiments.token_view import make_token_view

    make_token_view(options)


if __name__ == "__main__":
    run(main, TokenViewOptions, __doc__)
