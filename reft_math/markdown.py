"""Tables for model cards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def markdown(tables: Mapping[str, Sequence[Sequence[str]]]) -> str:
    """Tables under their titles; the first line of each is its header."""
    parts = []
    for title, (header, *body) in tables.items():
        lines = [header, ["---"] * len(header), *body]
        parts.append(f"{title}\n\n" + "".join(f"| {' | '.join(map(_escaped, line))} |\n" for line in lines))
    return "\n".join(parts)


def _escaped(text: str) -> str:
    """A cell that ends where it ends."""
    return " ".join(text.replace("|", "\\|").split())
