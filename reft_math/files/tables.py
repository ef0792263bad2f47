"""Tables: on the terminal, in CSV files and in model cards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reft_math.errors import printable


def markdown(tables: Mapping[str, Sequence[Sequence[str]]]) -> str:
    """Returns Markdown tables under their titles; the first line of each is its header."""
    parts = []
    for title, (header, *body) in tables.items():
        lines = [header, ["---"] * len(header), *body]
        parts.append(f"{title}\n\n" + "".join(f"| {' | '.join(map(_escaped, line))} |\n" for line in lines))
    return "\n".join(parts)


def _escaped(text: str) -> str:
    """Escapes a cell, so that its text cannot end it."""
    return " ".join(text.replace("|", "\\|").split())


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table; the first column is left-aligned, the others right. Without columns it has no header.

    Cells may be untrusted: nothing in them acts as markup or controls the terminal.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=bool(columns))
    for index, column in enumerate(columns or [""] * len(rows[0])):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    # As wide as needed: a terminal wraps lines that are too long, rich would truncate cells.
    console = Console(width=max(len(title), Console(width=10_000).measure(table).maximum))
    console.print(printable(title), style="italic", markup=False, highlight=False)
    console.print(table)


def lines(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns rows as text, under the first row's names: floats with four digits, a hyphen for None."""
    return [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
