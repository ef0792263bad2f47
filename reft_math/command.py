"""What every command shares: parsing, one-line errors, the output folder, results and tables."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, Protocol

from reft_math.errors import UserError, printable
from reft_math.files import is_used, make_folder, obstacle, remove_folder, storage_fault, write_json
from reft_math.help_groups import Formatter, arrange
from reft_math.holding import hold, release
from reft_math.json_text import read_object
from reft_math.stopping import end_with_parent, ends_on_interrupt

CONFIG_NAME = "run_config.json"
RESULTS_NAME = "results.json"
_PACKAGES = (
    "reft-math",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "tokenizers",
    "numpy",
    "scipy",
    "pyvene",
    "pyreft",
    "peft",
    "math-verify",
    "lm-eval",
    "scikit-learn",
)


class OutputOptions(Protocol):
    """Fields every command's dataclass has."""

    output_dir: str
    resume: bool
    overwrite: bool


def run(main: Callable[[Any], object], config_class: type, description: str | None) -> None:
    """Parses the command line into ``config_class`` and calls ``main`` with it.

    ``--config file.yaml`` holds the same settings; the command line wins over it. A `UserError`, and a disk that is
    full or read-only, become one line on standard error and exit code 2; Ctrl-C becomes one line and exit code 130, and
    so does the end of ``torchrun``, for its workers.
    """

    def last_words() -> str:
        return "" if _rank() else f"\nstopped; {_way_on(config_class)}\n"

    end_with_parent(last_words)
    with ends_on_interrupt(last_words):
        try:
            config = parse(config_class, description, sys.argv[1:])
            is_claimed = hasattr(config, "output_dir") and not getattr(config, "dry_run", False)
            if is_claimed and not _rank():
                check_output_dir(config)  # again when it is claimed; here so that nobody waits for a model first
            main(config)
        except UserError as error:
            _fail(str(error))
        except Exception as error:
            if (fault := storage_fault(error)) is None:
                raise
            _fail(f"{fault}; mend that; {_way_on(config_class)}")
        finally:
            release()


def _way_on(config_class: type) -> str:
    """What to type after a stop."""
    resumes = "resume" in (field.name for field in dataclasses.fields(config_class)) and "--resume" not in sys.argv
    way = " with --resume" if resumes else " again"
    return f"to go on, run the same command{way}{' in place of --overwrite' if '--overwrite' in sys.argv else ''}"


def _fail(message: str) -> NoReturn:
    """A mistake shows in every process, a fault perhaps in one."""
    if "tqdm" in sys.modules:
        for bar in tuple(sys.modules["tqdm"].tqdm._instances):
            bar.close()  # what an error left open has not ended its line
    print(f"error in process {_rank()}: {message}" if _rank() else f"error: {message}", file=sys.stderr)
    raise SystemExit(2) from None


def _rank() -> int:
    """``torchrun``'s number of this process."""
    return int(os.environ.get("RANK", "0"))


def parse(config_class: type, description: str | None, arguments: Sequence[str]) -> Any:
    """A ``config_class`` from command-line arguments."""
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
    """The options of ``config_class``, and ``--config``."""
    from transformers import HfArgumentParser

    parser: ArgumentParser = HfArgumentParser(
        config_class, description=description, formatter_class=Formatter, allow_abbrev=False
    )
    parser.error = _raise_user_error  # type: ignore[method-assign]
    # As in Python 3.14: -2:2:1 and -1e-3 are values, too. No option begins with a digit.
    parser._negative_number_matcher = re.compile(r"-\.?\d")
    parser.add_argument("--config", help="YAML file with any of these settings; the command line wins over it.")
    arrange(parser)
    return parser


def _meant(name: str, known: Sequence[str]) -> str:
    """``; did you mean …?`` where one of the known names is near."""
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
    """The file's settings as command-line arguments, to be checked like those. A run's `CONFIG_NAME` is such a file."""
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
    values.pop(_ROWS, None)  # of a run's; where the same settings find other rows, that is another run
    known = [field.name for field in dataclasses.fields(config_class)]
    if unknown := sorted(values.keys() - set(known)):
        hint = _meant(unknown[0], known)
        raise UserError(f"{path}: unknown settings {', '.join(unknown)}{hint} (--help lists the known ones)")
    arguments: list[str] = []
    for name, value in values.items():
        if any(isinstance(one, list | dict) for one in (value if isinstance(value, list) else [value])):
            raise UserError(f"{path}: {name} must be one value, or a list of such")  # others can be without end
        if isinstance(value, list):
            arguments += [f"--{name}", *map(str, value)]
        elif value is not None:
            arguments.append(f"--{name}={value}")
    return arguments


def claim_output_dir(config: Any, fingerprints: Mapping[str, Any] | None = None) -> Path:
    """Makes the output folder the run's own and writes its resolved settings there.

    Args:
        config: The settings.
        fingerprints: Of the rows that the run reads, by split, and of an adapter's parameters.

    Raises:
        UserError: The folder is in use and neither ``resume`` nor ``overwrite`` is given, or ``resume`` is given with
            other settings than the folder's, or other rows.
    """
    check_claim(config, fingerprints)
    folder = Path(config.output_dir)
    if config.overwrite and is_used(folder):
        remove_folder(folder)
    try:
        make_folder(folder)
    except OSError as error:
        raise UserError(f"--output-dir must be a folder that can be made; {folder}: {error.strerror}") from None
    _hold(folder)
    about = {} if fingerprints is None else {_ROWS: fingerprints}
    write_json(folder / CONFIG_NAME, {**_settings(config), **about})
    return folder


def check_claim(config: Any, fingerprints: Mapping[str, Any] | None = None) -> None:
    """Raises `UserError` where `claim_output_dir` would but for what the disk says. Writes nothing."""
    check_output_dir(config)
    folder = Path(config.output_dir)
    if config.resume and is_used(folder):
        _check_same_settings(folder, config, fingerprints)


def check_output_dir(config: Any) -> None:
    """Raises `UserError` where `claim_output_dir` would whatever the settings resolve to.

    Writes nothing; a folder that is there is the run's own from here on.
    """
    folder = Path(config.output_dir)
    if config.overwrite and config.resume:
        raise UserError("--resume and --overwrite exclude each other; got both")
    if reason := obstacle(folder):
        raise UserError(f"--output-dir must be a folder that can be written to; {reason}: choose another")
    if folder.is_dir():
        _hold(folder)
    in_use = is_used(folder)
    if in_use and not (config.resume or config.overwrite):
        raise UserError(
            f"output folder {folder} is in use; pass --resume to go on, --overwrite to start anew,"
            " or another --output-dir"
        )
    if in_use and config.overwrite:
        _check_is_run(folder, config)


def _hold(folder: Path) -> None:
    if not hold(folder):
        raise UserError(
            f"--output-dir must be no other run's; a process that is still at work holds {folder}: wait for its end,"
            " end it, or choose another"
        )


def check_output_file(path: Path) -> None:
    """Raises `UserError` where ``--output`` can be seen to be no file that could be written. Writes nothing."""
    if path.is_dir():
        raise UserError(f"--output must be a file; {path} is a folder")
    if reason := obstacle(path.parent):
        raise UserError(f"--output must be a file in a folder that can be written to; {reason}")


_ROWS = "fingerprints"  # stands among the settings

# Where results go, how a run is told to go on, and what cannot change a result.
_FREE_ON_RESUME = {
    *("output_dir", "resume", "overwrite", "dry_run"),
    *("save_steps", "report_to"),
}


def _settings(config: Any) -> dict[str, Any]:
    """The settings that make a run what it is, the command among them."""
    free = _FREE_ON_RESUME | getattr(config, "FREE_ON_RESUME", frozenset())
    values = {name: value for name, value in dataclasses.asdict(config).items() if name not in free}
    return {"command": type(config).__name__, **json.loads(json.dumps(values))}


def _read_settings(folder: Path) -> dict[str, Any] | None:
    """The settings of the run in a folder; None where there is none."""
    try:
        return read_object(folder / CONFIG_NAME)
    except (OSError, ValueError):
        return None


def _check_is_run(folder: Path, config: Any) -> None:
    """``--overwrite`` deletes: only what the same command wrote."""
    if os.path.ismount(folder) or Path.cwd().is_relative_to(folder.resolve()):
        raise UserError(
            f"--overwrite deletes the output folder and makes it anew; {folder} is a mount point or holds the working"
            " folder: choose one within it"
        )
    before, command = _read_settings(folder), _settings(config)["command"]
    if folder.is_symlink() or before is None or before.get("command") != command:
        raise UserError(
            f"--overwrite deletes a run of the same command only; {folder} holds no {CONFIG_NAME} of one:"
            " choose another --output-dir"
        )


def _check_same_settings(folder: Path, config: Any, fingerprints: Mapping[str, Any] | None) -> None:
    before, now = _read_settings(folder), _settings(config)
    if before is None:
        raise UserError(
            f"--resume goes on with a run; {folder} holds no readable {CONFIG_NAME}: choose another --output-dir"
        )
    rows = before.pop(_ROWS, None)
    for name in (*now, *before):  # as declared: what was given before what follows from it
        if now.get(name) != before.get(name):
            raise UserError(
                f"--resume needs the run's own settings; {name} was {before.get(name)!r} and is {now.get(name)!r}:"
                " repeat it, or choose another --output-dir"
            )
    if isinstance(rows, dict) and fingerprints is not None and rows != fingerprints:
        changed = [name for name in fingerprints if rows.get(name) != fingerprints[name]]
        raise UserError(
            f"--resume goes on with the rows and parameters that the run began with; those of {', '.join(changed)} have"
            " changed since: put them back, or choose another --output-dir"
        )


def provenance(config: Any) -> dict[str, Any]:
    """Command, date, commit, settings, versions and machine, for the head of every ``results.json``."""
    import torch

    return {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "config": dataclasses.asdict(config),
        "versions": versions(),
        "machine": {
            "platform": platform.platform(),
            "cpu_cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def _commit() -> str | None:
    """The project's commit where it runs from a checkout, with ``-dirty`` where files differ from it."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists():
        return None
    words = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str]:
    """Installed versions of the packages a result depends on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output; the first column is left-aligned, the others right. No columns, no head.

    Cells may be a stranger's: nothing in them is markup, or steers the terminal.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=bool(columns))
    for index, column in enumerate(columns or [""] * len(rows[0])):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    # As wide as it needs to be: a terminal breaks lines that are too long, rich would cut cells off.
    console = Console(width=max(len(title), Console(width=10_000).measure(table).maximum))
    console.print(printable(title), style="italic", markup=False, highlight=False)
    console.print(table)
