"""Result folders as one self-contained HTML page."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeGuard
from xml.etree.ElementTree import Element

from reft_math.calibration import GATE_COLUMNS, gate_rows
from reft_math.errors import UserError
from reft_math.evaluation import (
    COST_COLUMNS,
    EVALUATION_COLUMNS,
    SAMPLING_COLUMNS,
    cost_rows,
    evaluation_rows,
    sampling_rows,
)
from reft_math.figures.markup import document, tag
from reft_math.figures.report_titles import title_and_purpose
from reft_math.models import EMBEDDED_MODEL
from reft_math.regressor.evaluation import COLUMNS as REGRESSION_COLUMNS
from reft_math.regressor.evaluation import table_rows
from reft_math.result_folders import ResultFolder
from reft_math.scoring.lengths import LENGTH_TITLE

Lines = Sequence[Sequence[str]]

LONG_TABLE = 30  # rows; longer ones are folded
LARGE_SVG = 500_000  # bytes; a PNG of the same figure is taken instead
_PROVENANCE = ("command", "date", "commit", "config", "versions", "machine")
_FLOAT = re.compile(r"[-+]?(\d*\.\d+([eE][-+]?\d{1,3})?|\d+[eE][-+]\d{1,3})")
_NUMERIC = re.compile(r"[-+.,%eE\d ]*\d[-+.,%eE\d ]*|-|")


def report_page(folders: Sequence[ResultFolder], title: str, provenance: Mapping[str, Any]) -> str:
    """The page: models, contents, a section for each folder, how the page was made.

    Args:
        folders: Sections stand in the order of `title_and_purpose`'s list, then by name.
        title: Of the page.
        provenance: Of the page itself, from `reft_math.command.provenance`.

    Returns:
        HTML. Text from files is never markup.

    Raises:
        UserError: A ``results.json`` has not the form that its command writes.
    """
    ordered = sorted(folders, key=lambda folder: (title_and_purpose(folder)[2], folder.name))
    sections = [_section(f"run-{number}", folder) for number, folder in enumerate(ordered, start=1)]
    contents = [
        tag("li", tag("a", _title(folder), href=f"#run-{number}"), " ", tag("small", _status(folder)))
        for number, folder in enumerate(ordered, start=1)
    ]
    header = tag("header", tag("h1", title), *_introduction(ordered))
    nav = tag("nav", tag("h2", "Contents"), tag("ol", *contents), aria_label="Contents")
    made = {"page made by": str(provenance["command"]), **_facts(provenance)}
    style = files("reft_math.figures").joinpath("report.css").read_text(encoding="utf-8")
    return document(title, style, header, nav, tag("main", *sections), tag("footer", _definitions(made)))


def round_number(cell: str) -> str:
    """A cell with its fraction rounded to four significant digits; whole numbers and text stay as they are."""
    if not _FLOAT.fullmatch(cell):
        return cell
    value = float(cell) + 0.0  # −0 becomes 0
    return f"{value:.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def _introduction(folders: Sequence[ResultFolder]) -> Iterator[Element]:
    models = sorted({model for folder in folders if (model := _model(folder))})
    names = [f"{model} (embedded)" if model == EMBEDDED_MODEL else model for model in models]
    yield tag("p", f"Models: {', '.join(names) or 'not recorded'}. Fractions in tables are rounded to four digits.")
    if EMBEDDED_MODEL in models:
        warning = (
            "The embedded model's figures say that the machinery works; they say nothing of a large language model."
        )
        yield tag("p", warning, class_="note")


def _model(folder: ResultFolder) -> str | None:
    regressor = (folder.results or {}).get("regressor")
    base = regressor.get("base_model") if isinstance(regressor, dict) else None
    model = folder.config.get("model") or base
    return None if model is None else str(model)


def _title(folder: ResultFolder) -> str:
    title = title_and_purpose(folder)[0]
    return f"{title}: {folder.name}" if title else folder.name


def _status(folder: ResultFolder) -> str:
    if folder.results is not None:
        return str(folder.results.get("date", ""))[:10]
    return "figures and tables only" if folder.settings is None else "unfinished"


def _section(anchor: str, folder: ResultFolder) -> Element:
    try:
        return tag("section", *_parts(anchor, folder), id=anchor, aria_labelledby=f"{anchor}-title")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder.path}/results.json has not the form that its command writes ({error!r}); take its folder out"
        ) from None


def _parts(anchor: str, folder: ResultFolder) -> Iterator[Element]:
    """What a run was, what came out, and everything it was set to."""
    title, purpose, _ = title_and_purpose(folder)
    results = folder.results or {}
    yield tag("h2", f"{title or folder.name} ", tag("small", folder.name if title else ""), id=f"{anchor}-title")
    if purpose:
        yield tag("p", purpose)
    for note in _notes(folder):
        yield tag("p", note, class_="note")
    if "command" in results:
        yield _command(str(results["command"]))
    yield _definitions(_facts(results))
    for name, lines in _summaries(results).items():
        yield _table(name, *lines)
    for path in _figures(folder):
        yield _figure(path, _title(folder))
    for name, lines in folder.tables.items():
        yield _table(name, *_rounded(lines))
    yield from _details(folder)


def _command(line: str) -> Element:
    """The words are boxes of their own, for a line would break between the hyphens of an option."""
    first, *others = line.split(" ")
    words = [part for word in others for part in (" ", tag("span", word))]
    return tag("pre", tag("code", tag("span", first), *words))


def _notes(folder: ResultFolder) -> Iterator[str]:
    if folder.results is None and folder.settings is not None:
        yield "Unfinished: there is no results.json (yet). What is there is shown."
    elif folder.results is None:
        yield "Figures and tables only: the command that made them recorded no settings."


def _facts(results: Mapping[str, Any]) -> dict[str, str]:
    """Date, commit and machine, as far as they are known."""
    machine = results.get("machine") or {}
    hardware = f"{machine.get('cpu_cores')} cores, {machine.get('threads')} threads, {machine.get('gpu') or 'no GPU'}"
    found = {
        "date": results.get("date"),
        "commit": results.get("commit"),
        "machine": f"{machine.get('platform')}, {hardware}" if machine else None,
    }
    return {name: str(value) for name, value in found.items() if value is not None}


def _summaries(results: Mapping[str, Any]) -> dict[str, Lines]:
    """Tables of scores in ``results.json``, the header first."""
    evaluation, gates = results.get("evaluation"), results.get("calibration") or results.get("gates")
    tables: dict[str, Lines] = {}
    if _each_has(evaluation, "mean_tokens"):
        tables["evaluation"] = [EVALUATION_COLUMNS, *evaluation_rows(evaluation)]
        tables[LENGTH_TITLE] = [COST_COLUMNS, *cost_rows(evaluation)]
        for name, summary in evaluation.items():
            if "pass_at_k" in summary:
                tables[f"evaluation over problems, {name}"] = [SAMPLING_COLUMNS, *sampling_rows(summary)]
    elif _each_has(evaluation, "predictors"):
        marked = f"tuned/{results.get('predictor')}"
        tables["evaluation, * was trained"] = [REGRESSION_COLUMNS, *table_rows(evaluation, marked)]
    if _each_has(gates, "median_closing_position"):
        best = results.get("best") or results.get("gate")
        tables["accuracy by gate" + (", * was chosen" if best else "")] = [GATE_COLUMNS, *gate_rows(gates, best)]
    return tables


def _each_has(summaries: Any, name: str) -> TypeGuard[Mapping[str, Mapping[str, Any]]]:
    values = list(summaries.values()) if isinstance(summaries, dict) else []
    return bool(values) and all(isinstance(value, dict) and name in value for value in values)


def _figures(folder: ResultFolder) -> list[Path]:
    """One file a figure: SVG, which is sharp at any size, unless it is large and there is a PNG."""
    chosen: dict[str, Path] = {}
    for path in folder.figures:  # a stem's PNG comes before its SVG
        if path.stem not in chosen or path.stat().st_size <= LARGE_SVG:
            chosen[path.stem] = path
    return list(chosen.values())


def _figure(path: Path, title: str) -> Element:
    """As an image, a figure's ids are its own and nothing in it runs."""
    kind = "image/svg+xml" if path.suffix == ".svg" else "image/png"
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    image = tag("img", src=f"data:{kind};base64,{data}", alt=f"Figure {path.stem} of {title}")
    box = tag("div", image, class_="scroll", tabindex="0", role="region", aria_label=f"figure {path.stem}")
    return tag("figure", box, tag("figcaption", path.name))


def _rounded(lines: Lines) -> Lines:
    return [lines[0], *([round_number(cell) for cell in row] for row in lines[1:])] if lines else [["(empty file)"]]


def _table(name: str, header: Sequence[str], *rows: Sequence[str]) -> Element:
    columns = list(zip_longest(*rows, fillvalue=""))
    classes = ["number" if all(map(_NUMERIC.fullmatch, column)) else "text" for column in columns]
    head = [tag("th", cell, scope="col", class_=kind) for cell, kind in zip_longest(header, classes, fillvalue="")]
    body = [
        tag("tr", *(tag("td", cell, class_=kind) for cell, kind in zip(row, classes, strict=False))) for row in rows
    ]
    table = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *body))
    box = tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=f"table {name}")
    if len(rows) > LONG_TABLE:
        return tag("details", tag("summary", f"{name}: {len(rows)} rows"), box)
    return tag("figure", tag("figcaption", name), box)


def _details(folder: ResultFolder) -> Iterator[Element]:
    results = folder.results or {}
    others = {name: value for name, value in results.items() if name not in (*_PROVENANCE, "evaluation")}
    for name, values in (
        ("Settings", folder.config),
        ("Versions", results.get("versions") or {}),
        ("Other results", dict(_scalars(others))),
    ):
        if values:
            yield tag(
                "details", tag("summary", name), _definitions({key: _text(value) for key, value in values.items()})
            )


def _scalars(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Single values, and those one level down; longer ones are in tables."""
    for name, value in values.items():
        if isinstance(value, dict) and not prefix:
            yield from _scalars(value, f"{name}.")
        elif not isinstance(value, dict | list) and value is not None:
            yield prefix + name, value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else round_number(json.dumps(value, ensure_ascii=False))


def _definitions(values: Mapping[str, str]) -> Element:
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in values.items()))
