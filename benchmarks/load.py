"""Measure the start-up time of commands: ``--help`` of every command, and imports.

    uv run benchmarks/load.py --json results/load.json

Each is a process of its own, from its start to its end; contenders take turns, round by round. ``vs_python`` is against
a bare interpreter, ``vs_pyreft`` against ``import pyreft``, within a round; medians and quartiles over the rounds.
Files are in the machine's cache after the first round, which is not counted.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.common.measure import spread, timed
from reft_math.commands.run import run
from reft_math.errors import require
from reft_math.files.atomic import write_json

ROOT = Path(__file__).resolve().parents[1]
PEERS = {"vs_python": "python", "vs_pyreft": "import pyreft"}
IMPORTS = ("reft_math", "interventions", "reft_math.models.base", "transformers", "peft", "pyreft")


@dataclass(frozen=True)
class LoadOptions:
    only: list[str] = field(default_factory=list, metadata={"help": "Commands, such as train/lora.py (all)."})
    rounds: int = field(default=5, metadata={"help": "Measured rounds, after one warm-up round."})
    json: str | None = field(default=None, metadata={"help": "File for the results."})

    def __post_init__(self) -> None:
        require(self, "rounds", lambda value: value >= 1, "at least 1")
        require(self, "only", lambda value: not set(value) - set(scripts()), f"among {', '.join(scripts())}")


def scripts() -> list[str]:
    """Every command."""
    folders = ("train", "eval", "benchmarks")
    return [f"{path.parent.name}/{path.name}" for folder in folders for path in sorted((ROOT / folder).glob("*.py"))]


def contenders(options: LoadOptions) -> dict[str, list[str]]:
    """Returns Python's arguments by name."""
    imports = {f"import {name}": ["-c", f"import {name}"] for name in IMPORTS}
    helps = {f"{name} --help": [str(ROOT / name), "--help"] for name in options.only or scripts()}
    return {"python": ["-c", "pass"], **imports, **helps}


def seconds(arguments: Sequence[str]) -> float:
    """Of the process, with what it prints thrown away."""
    line = [sys.executable, *arguments]
    return timed(lambda: subprocess.run(line, cwd=ROOT, capture_output=True, check=True))


def ratios(rounds: Sequence[Mapping[str, float]], peer: str) -> dict[str, dict[str, float]]:
    """Each contender's seconds over the peer's, taken within rounds."""
    return {name: spread([row[name] / row[peer] for row in rounds]) for name in rounds[0]}


def main(options: LoadOptions) -> None:
    from reft_math.commands.progress import progress
    from reft_math.commands.provenance import provenance
    from reft_math.files.tables import print_table

    lines = contenders(options)
    rounds = [
        {name: seconds(arguments) for name, arguments in lines.items()}
        for _ in progress(range(options.rounds + 1), name="measuring", unit="round")
    ][1:]
    spent = {name: spread([row[name] for row in rounds]) for name in lines}
    against = {name: ratios(rounds, peer) for name, peer in PEERS.items()}
    rows = [
        [
            name,
            f"{spent[name]['median']:.2f}",
            f"{spent[name]['lower_quartile']:.2f} - {spent[name]['upper_quartile']:.2f}",
            *(f"{found[name]['median']:.2f}" for found in against.values()),
        ]
        for name in lines
    ]
    print_table("seconds of a process", ("", "median", "quartiles", *against), rows)
    if options.json is not None:
        slowest = max((name for name in lines if name.endswith("--help")), key=lambda name: spent[name]["median"])
        report = {"slowest_help": slowest, "slowest_help_seconds": spent[slowest]["median"]}
        path = Path(options.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**provenance(options), **report, "seconds": spent, **against})


if __name__ == "__main__":
    run(main, LoadOptions, __doc__)
