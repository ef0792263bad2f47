"""Makes one self-contained HTML page from result folders."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from reft_math.data.arithmetic import EMBEDDED_MODEL
from reft_math.errors import UserError
from reft_math.experiments.figures.pages import render_page
from reft_math.experiments.result_folders import ResultFolder
from reft_math.experiments.titles import title_and_purpose

Lines = Sequence[Sequence[str]]

LONG_TABLE = 30  # rows; longer ones are folded
LARGE_SVG = 500_000  # bytes; for larger ones the PNG is used
_SHOWN = ("command", "date", "commit", "config", "versions", "machine", "evaluation", "score_tables")
_FLOAT = re.compile(r"[-+]?(\d*\.\d+([eE][-+]?\d{1,3})?|\d+[eE][-+]\d{1,3})")
_NUMERIC = re.compile(r"[-+.,%eE\d ]*\d[-+.,%eE\d ]*|-|")


def report_page(folders: Sequence[ResultFolder], title: str, provenance: Mapping[str, Any]) -> str:
    """Makes the page: models, contents, a section for each folder, the page's provenance.

    Args:
        folders: Sections stand in the order of `title_and_purpose`'s list, then by name.
        title: Title of the page.
        provenance: The page's own provenance, from `reft_math.commands.provenance.provenance`.

    Returns:
        HTML. Text from files is never markup.

    Raises:
        UserError: A ``results.json`` has not the form that its command writes.
    """
    ordered = sorted(folders, key=lambda folder: (title_and_purpose(folder)[2], folder.name))
    models = sorted({model for folder in ordered if (model := _model(folder))})
    return render_page(
        "report",
        title=title,
        models=[f"{model} (embedded)" if model == EMBEDDED_MODEL else model for model in models],
        is_embedded=EMBEDDED_MODEL in models,
        sections=[_section(folder) for folder in ordered],
        long_table=LONG_TABLE,
        made={"page made by": str(provenance["command"]), **_facts(provenance)},
    )


def round_number(cell: str) -> str:
    """Returns a cell with fractions rounded to four significant digits; whole numbers and text are unchanged."""
    if not _FLOAT.fullmatch(cell):
        return cell
    value = float(cell) + 0.0  # −0 becomes 0
    return f"{value:.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def _model(folder: ResultFolder) -> str | None:
    regressor = (folder.results or {}).get("regressor")
    base = regressor.get("base_model") if isinstance(regressor, dict) else None
    model = folder.config.get("model") or base
    return None if model is None else str(model)


def _status(folder: ResultFolder) -> str:
    if folder.results is not None:
        return str(folder.results.get("date", ""))[:10]
    return "figures and tables only" if folder.settings is None else "unfinished"


def _section(folder: ResultFolder) -> dict[str, Any]:
    """Makes a run's section: its purpose, its results and all its settings."""
    title, purpose, _ = title_and_purpose(folder)
    results = folder.results or {}
    try:
        return {
            "heading": title or folder.name,
            "subheading": folder.name if title else "",
            "full_title": f"{title}: {folder.name}" if title else folder.name,
            "status": _status(folder),
            "purpose": purpose,
            "note": _note(folder),
            "command": str(results.get("command", "")),
            "facts": _facts(results),
            "summaries": [_table(name, *lines) for name, lines in results.get("score_tables", {}).items()],
            "figures": [_figure(path) for path in _figures(folder)],
            "tables": [_table(name, *_rounded(lines)) for name, lines in folder.tables.items()],
            "details": _details(folder),
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder.path}/results.json has not the form that its command writes ({error!r}); take its folder out"
        ) from None


def _note(folder: ResultFolder) -> str:
    if folder.results is not None:
        return ""
    if folder.settings is not None:
        return "Unfinished: there is no results.json (yet). What is there is shown."
    return "Figures and tables only: the command that made them recorded no settings."


def _facts(results: Mapping[str, Any]) -> dict[str, str]:
    """Returns date, commit and machine, as far as they are known."""
    machine = results.get("machine") or {}
    hardware = f"{machine.get('cpu_cores')} cores, {machine.get('threads')} threads, {machine.get('gpu') or 'no GPU'}"
    found = {
        "date": results.get("date"),
        "commit": results.get("commit"),
        "machine": f"{machine.get('platform')}, {hardware}" if machine else None,
    }
    return {name: str(value) for name, value in found.items() if value is not None}


def _figures(folder: ResultFolder) -> list[Path]:
    """Returns one file per figure: SVG, which is sharp at any size, unless it is large and there is a PNG."""
    chosen: dict[str, Path] = {}
    for path in folder.figures:  # a stem's PNG comes before its SVG
        if path.stem not in chosen or path.stat().st_size <= LARGE_SVG:
            chosen[path.stem] = path
    return list(chosen.values())


def _figure(path: Path) -> dict[str, str]:
    kind = "image/svg+xml" if path.suffix == ".svg" else "image/png"
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return {"name": path.name, "stem": path.stem, "kind": kind, "data": data}


def _rounded(lines: Lines) -> Lines:
    return [lines[0], *([round_number(cell) for cell in row] for row in lines[1:])] if lines else [["(empty file)"]]


def _table(name: str, header: Sequence[str], *rows: Sequence[str]) -> dict[str, Any]:
    """Returns cells with the classes of their columns."""
    columns = zip_longest(*rows, fillvalue="")
    kinds = ["number" if all(map(_NUMERIC.fullmatch, column)) else "text" for column in columns]
    head = list(zip_longest(header, kinds, fillvalue=""))
    return {"name": name, "head": head, "rows": [list(zip(row, kinds, strict=False)) for row in rows]}


def _details(folder: ResultFolder) -> dict[str, dict[str, str]]:
    results = folder.results or {}
    others = {name: value for name, value in results.items() if name not in _SHOWN}
    details = {
        "Settings": folder.config,
        "Versions": results.get("versions") or {},
        "Other results": dict(_scalars(others)),
    }
    return {name: {key: _text(value) for key, value in values.items()} for name, values in details.items()}


def _scalars(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Returns single values, and those one level down; longer ones are in tables."""
    for name, value in values.items():
        if isinstance(value, dict) and not prefix:
            yield from _scalars(value, f"{name}.")
        elif not isinstance(value, dict | list) and value is not None:
            yield prefix + name, value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else round_number(json.dumps(value, ensure_ascii=False))
