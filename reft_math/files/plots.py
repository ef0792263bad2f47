"""Writes figures whole or not at all, with one palette."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from reft_math.files.atomic import atomic_path


def write_figure(folder: Path, name: str, figure: Figure) -> None:
    """Writes ``NAME.png`` and ``NAME.svg``. The same figure gives the same files: no date, no random names."""
    from matplotlib import rc_context

    for ending, metadata in (("png", None), ("svg", {"Date": None})):
        with atomic_path(folder / f"{name}.{ending}") as aside, rc_context({"svg.hashsalt": name}):
            figure.savefig(aside, format=ending, dpi=150, metadata=metadata)


# Okabe and Ito's palette, which colour-blind readers can tell apart.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
