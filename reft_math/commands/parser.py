"""Parses a command line and a YAML file into a frozen dataclass of options."""

from __future__ import annotations

import dataclasses
import re
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from reft_math.commands.help import Formatter, arrange
from reft_math.commands.output_folder import ROWS
from reft_math.errors import UserError


def parse(config_class: type, description: str | None, arguments: Sequence[str]) -> Any:
    """Returns a ``config_class`` from command-line arguments."""
    path = _config_path(arguments)
    from_file = _read_yaml(path, config_class) if path else []
    known, unknown = make_parser(config_class, description).parse_known_args([*from_file, *arguments])
    if unknown and not getattr(config_class, "HANDS_ON", False):
        options = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(config_class)]
        _raise_user_error(f"unrecognized arguments: {' '.join(unknown)}{_meant(unknown[0].partition('=')[0], options)}")
    values = vars(known)
    values.pop("config")
    return config_class(**values)


def make_parser(config_class: type, description: str | None) -> ArgumentParser:
    """Returns a parser of the options of ``config_class`` and of ``--config``."""
    from transformers import HfArgumentParser

    parser: ArgumentParser = HfArgumentParser(
        config_class, description=description, formatter_class=Formatter, allow_abbrev=False
    )
    parser.error = _raise_user_error  # type: ignore[method-assign]
    # As in Python 3.14: -2:2:1 and -1e-3 are values, not options. No option begins with a digit.
    parser._negative_number_matcher = re.compile(r"-\.?\d")
    parser.add_argument("--config", help="YAML file with any of these settings; the command line wins over it.")
    arrange(parser)
    return parser


def _meant(name: str, known: Sequence[str]) -> str:
    """Returns ``; did you mean …?`` if one of the known names is similar, else an empty text."""
    from difflib import get_close_matches

    return "".join(f"; did you mean {near}?" for near in get_close_matches(name, known, n=1))


def _raise_user_error(message: str) -> NoReturn:
    raise UserError(f"{message} (--help lists the options)")


def _config_path(arguments: Sequence[str]) -> str | None:
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.error = _raise_user_error  # type: ignore[method-assign]
    parser.add_argument("--config")
    path: str | None = parser.parse_known_args(list(arguments))[0].config
    return path


def _read_yaml(path: str, config_class: type) -> list[str]:
    """Returns the file's settings as command-line arguments, checked like those. A run's settings are such a file."""
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"--config must be a readable YAML file; {path}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"--config must map setting names to values; {path} holds {type(values).__name__}")
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    if (command := values.pop("command", config_class.__name__)) != config_class.__name__:
        raise UserError(f"--config must be of this command ({config_class.__name__}); {path} is a run's of {command}")
    values.pop(ROWS, None)  # from a run's settings; a new run may read other rows
    known = [field.name for field in dataclasses.fields(config_class)]
    if unknown := sorted(values.keys() - set(known)):
        hint = _meant(unknown[0], known)
        raise UserError(f"{path}: unknown settings {', '.join(unknown)}{hint} (--help lists the known ones)")
    arguments: list[str] = []
    for name, value in values.items():
        if any(isinstance(one, list | dict) for one in (value if isinstance(value, list) else [value])):
            raise UserError(f"{path}: {name} must be one value, or a list of such")  # other values can be endless
        if isinstance(value, list):
            arguments += [f"--{name}", *map(str, value)]
        elif value is not None:
            arguments.append(f"--{name}={value}")
    return arguments
