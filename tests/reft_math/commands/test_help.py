"""What ``--help`` says, of every command and of one that is small."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Literal, get_type_hints

import pytest

from reft_math.commands.help import GROUPS, METAVARS
from reft_math.commands.parser import make_parser

ROOT = Path(__file__).resolve().parents[3]
COMMANDS = [
    f"{folder}/{path.name}" for folder in ("train", "eval", "benchmarks") for path in (ROOT / folder).glob("*.py")
]
NAMES = [name for names in GROUPS.values() for name in names.split()]


@dataclass(frozen=True)
class Options:
    seed: int = field(default=0, metadata={"help": "Of the samples."})
    dtype: Literal["auto", "float32"] = field(default="auto", metadata={"help": "Of the weights."})
    gates: list[str] = field(default_factory=list, metadata={"help": "Candidates for a hand-off-with-a-long-name."})
    resume: bool = field(default=False, metadata={"help": "Go on."})
    calibrate_gate: bool = field(default=True, metadata={"help": "Choose the gate."})
    learning_rate: float | None = field(default=None, metadata={"help": "Peak (2e-4)."})
    unheard_of: str = field(default="x", metadata={"help": "In no group."})


DESCRIPTION = """Do it. A sentence that is so long that it does not fit into the width of a narrow terminal.

    uv run train/it.py --seed 4 --an-example-keeps-its-line-however-long-it-is-and-whatever-the-terminal
"""


@pytest.fixture
def parsers(command: Callable[[str], ModuleType]) -> dict[str, ArgumentParser]:
    modules = {path: command(path) for path in COMMANDS}
    return {
        path: make_parser(get_type_hints(module.main)["options"], module.__doc__) for path, module in modules.items()
    }


def test_every_option_of_every_command_is_in_one_group(parsers: dict[str, ArgumentParser]) -> None:
    """A new option has to be given a place in `GROUPS`, a gone one has to leave it."""
    found = {action.dest for parser in parsers.values() for action in parser._actions}
    assert found == set(NAMES)
    assert len(NAMES) == len(set(NAMES))


def test_every_option_has_a_short_metavar_and_a_help_text(parsers: dict[str, ArgumentParser]) -> None:
    for path, parser in parsers.items():
        for action in parser._actions:
            assert action.help, (path, action.dest)
            assert action.choices or action.nargs in (0, "?") or action.metavar, (path, action.dest)
    assert {name for names in METAVARS.values() for name in names.split()} <= set(NAMES)


def test_help_is_grouped_short_and_as_wide_as_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/train/it.py"])
    monkeypatch.setenv("COLUMNS", "62")
    make_parser(Options, DESCRIPTION).print_help()
    assert (
        capsys.readouterr().out
        == """\
usage: train/it.py [options]

Do it. A sentence that is so long that it does not fit into
the width of a narrow terminal.

    uv run train/it.py --seed 4 --an-example-keeps-its-line-however-long-it-is-and-whatever-the-terminal

options:
  --unheard-of NAME        In no group. [x]

Model:
  --dtype {auto,float32}   Of the weights. [auto]

Training:
  --learning-rate X        Peak (2e-4).

Decoding:
  --gates GATE [GATE ...]  Candidates for a
                           hand-off-with-a-long-name.
  --no-calibrate-gate      Do not choose the gate.

Run:
  --seed N                 Of the samples. [0]
  --resume                 Go on.
  --config FILE            YAML file with any of these
                           settings; the command line wins
                           over it.
  -h, --help               Show this help.
"""
    )
