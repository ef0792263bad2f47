"""Writes figures whole or not at all, with one palette."""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from reft_math.files.atomic import atomic_path

OPEN_AXES = {"axes.spines.top": False, "axes.spines.right": False}  # settings for matplotlib's `rc_context`
# Okabe and Ito's palette, which colour-blind readers can tell apart.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def write_figure(folder: Path, name: str, figure: Figure) -> None:
    """Writes ``NAME.png`` and ``NAME.svg``: the same bytes for the same figure, with no date and no random names."""
    for ending, metadata in (("png", None), ("svg", {"Date": None})):
        with atomic_path(folder / f"{name}.{ending}") as aside, rc_context({"svg.hashsalt": name}):
            figure.savefig(aside, format=ending, dpi=150, metadata=metadata)
