"""Reads the output folders of commands in a folder of results."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from reft_math.commands.output_folder import RESULTS_NAME, RUN_CONFIG
from reft_math.errors import UserError
from reft_math.files.strict import read_object

_JSON, _TABLE, _FIGURES = (RUN_CONFIG, RESULTS_NAME), ".csv", (".png", ".svg")


@dataclass(frozen=True)
class ResultFolder:
    """A run's output folder, or a folder with only figures or tables.

    Attributes:
        path: The folder.
        name: Its path relative to the searched folder.
        settings: ``run_config.json``, which every run writes first; None if missing.
        results: ``results.json``, which a finished run writes last; None if missing.
        tables: Lines of cells by file name, the header first.
        figures: PNG and SVG files.
    """

    path: Path
    name: str
    settings: dict[str, Any] | None
    results: dict[str, Any] | None
    tables: dict[str, list[list[str]]]
    figures: list[Path]

    @property
    def config(self) -> dict[str, Any]:
        """Returns the settings, as far as they were written."""
        config = (self.results or {}).get("config")
        return config if isinstance(config, dict) else self.settings or {}


def find_result_folders(root: Path) -> list[ResultFolder]:
    """Returns all output folders in a folder, itself included, by name. Folders inside a run belong to the run.

    Raises:
        UserError: The folder holds nothing to show, or something that cannot be read.
    """
    folders = list(_walk(root))
    if all(folder.settings is None and folder.results is None for folder in folders):
        raise UserError(f"--results must hold output folders of commands, with {RESULTS_NAME}; {root} holds none")
    return folders


def _walk(root: Path) -> Iterator[ResultFolder]:
    inside = root.resolve()
    for place, names, files in os.walk(root, onerror=_refuse):
        names.sort()
        path = Path(place)
        shown = sorted(name for name in files if name in _JSON or name.endswith((_TABLE, *_FIGURES)))
        for name in shown:
            if not (path / name).resolve().is_relative_to(inside):  # a page must not publish link targets
                raise UserError(f"--results must hold its own files; {path / name} is a link out of it")
        settings, results = (_read_json(path / name) if name in files else None for name in _JSON)
        is_run = settings is not None or results is not None
        tables = {name: _read_table(path / name) for name in shown if name.endswith(_TABLE)}
        figures = [path / name for name in shown if name.endswith(_FIGURES)]
        if is_run or tables or figures:
            name = path.relative_to(root).as_posix() if path != root else path.resolve().name
            yield ResultFolder(path, name, settings, results, tables, figures)
        if is_run:
            names.clear()


def _refuse(error: OSError) -> NoReturn:
    raise UserError(f"--results must be a folder that can be read; {error.filename}: {error.strerror}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); mend it, or take its folder out of --results") from None


def _read_table(path: Path) -> list[list[str]]:
    try:
        return list(csv.reader(io.StringIO(path.read_bytes().decode("utf-8"), newline="")))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}); mend it, or take it out of --results") from None
