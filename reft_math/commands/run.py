"""Runs a command: options from the command line, its `main`, and one line for a mistake."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from reft_math.commands.interrupt import end_with_parent, ends_on_interrupt
from reft_math.commands.output_folder import check_output_dir
from reft_math.commands.parser import parse
from reft_math.errors import UserError, require_there
from reft_math.files.atomic import storage_fault
from reft_math.files.lock import release

# Options whose values may be paths: one that leads nowhere is told before a library is imported.
_PATHS = ("model", "adapter", "reft", "regressor", "dataset", "eval_dataset", "data_dir", "runs")


def run(main: Callable[[Any], object], config_class: type, description: str | None) -> None:
    """Parses the command line into ``config_class`` and calls ``main`` with it.

    ``--config file.yaml`` holds the same settings; the command line overrides it. A `UserError`, or a full or
    read-only disk, prints one line on standard error and exits with code 2; Ctrl-C and SIGTERM print one line and exit
    with codes 130 and 143, and workers of a ``torchrun`` that has ended do so with 130.
    """

    def last_words() -> str:
        return "" if _rank() else f"\nstopped; {_way_on(config_class)}\n"

    end_with_parent(last_words)
    with ends_on_interrupt(last_words):
        try:
            config = parse(config_class, description, sys.argv[1:])
            require_there(config, *_PATHS)
            is_claimed = hasattr(config, "output_dir") and not getattr(config, "dry_run", False)
            if is_claimed and not _rank():
                check_output_dir(config)  # also checked on claiming; here to fail before a model loads
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
    """Returns the hint how to go on after a stop."""
    resumes = "resume" in (field.name for field in dataclasses.fields(config_class)) and "--resume" not in sys.argv
    way = " with --resume" if resumes else " again"
    return f"to go on, run the same command{way}{' in place of --overwrite' if '--overwrite' in sys.argv else ''}"


def _fail(message: str) -> NoReturn:
    """Prints the error and exits. A user's mistake occurs in every process, a fault perhaps in one."""
    if "tqdm" in sys.modules:
        for bar in tuple(sys.modules["tqdm"].tqdm._instances):
            bar.close()  # a bar left open by an error has not ended its line
    print(f"error in process {_rank()}: {message}" if _rank() else f"error: {message}", file=sys.stderr)
    raise SystemExit(2) from None


def _rank() -> int:
    """Returns ``torchrun``'s number of this process."""
    return int(os.environ.get("RANK", "0"))
