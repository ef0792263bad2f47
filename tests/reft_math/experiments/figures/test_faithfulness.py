from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from reft_math.experiments.figures.faithfulness import heads_figure, positions_figure

HEADS = ("residual", "0", "1")


def score(source: str, layer: int, head: str, position: str | int, delta: float, questions: int = 50) -> dict[str, Any]:
    low, high = delta - 0.2, delta + 0.2
    about = {"source": source, "layer": layer, "head": head, "position": position, "questions": questions}
    interval = {"delta": delta, "delta_low": low, "delta_high": high}
    about |= {"pairs": 60, "open": 0.25, "reads": (layer, head) != (0, "1")}
    return {**about, "score": layer + delta, "low": 0.0, "high": 2.0, **interval}


PROBES = [
    {"layer": layer, "head": head, "questions": 50, "texts": 120, "accuracy": 0.5 + 0.1 * layer, "reads": True}
    for layer in range(2)
    for head in HEADS
]
SCORES = [
    row
    for source, size in (("base", 0.0), ("always on", 1.0), ("prefix, tokens:4", 0.0))
    for layer in range(2)
    for row in (
        *(score(source, layer, head, "all", size * (layer - 0.1) * index) for index, head in enumerate(HEADS)),
        *(score(source, layer, "residual", position, size * position * 0.3) for position in (0, 1)),
        score(source, layer, "residual", 2, 9 * size, questions=9),
    )
]


def test_heads_are_the_tables() -> None:
    figure = heads_figure(PROBES, SCORES)
    first, always_on, prefix = figure.axes[:3]
    np.testing.assert_allclose(first.images[0].get_array(), [[0.5] * 3, [0.6] * 3])
    assert [text.get_text() for text in first.texts] == ["50%"] * 3 + ["60%"] * 3
    assert [label.get_text() for label in first.get_xticklabels()] == ["res.", "0", "1"]
    assert "n = 120 texts, 50 questions" in first.get_title()
    changes = always_on.images[0].get_array()
    np.testing.assert_allclose(changes[1], [0, 0.9, 1.8])
    np.testing.assert_allclose(changes[0, :2], [0, -0.1])
    assert np.ma.getmaskarray(changes).tolist() == [[False, False, True], [False] * 3], "its probe reads nothing"
    assert always_on.get_title() == "always on, n = 50 questions\non after 25% of texts"
    ((x, y),) = [line.get_data() for line in always_on.lines]
    assert list(zip(x, y, strict=True)) == [(1, 1), (2, 1)], "marked are the intervals without 0"
    assert [text.get_text() for text in prefix.texts] == ["exactly 0"]
    limits = [image.get_clim() for axes in (always_on, prefix) for image in axes.images]
    assert limits == [(pytest.approx(-1.8), pytest.approx(1.8))] * 2
    low, high = (always_on.images[0].cmap(share)[:3] for share in (0.1, 0.9))
    assert low[2] > low[0]
    assert high[0] > high[2], "red up, blue down"


def test_positions_are_the_tables_and_cells_of_few_questions_blank() -> None:
    base, always_on, _ = positions_figure(SCORES).axes[:3]
    assert [label.get_text() for label in base.get_xticklabels()] == ["0\n50", "1\n50", "2\n9"]
    np.testing.assert_allclose(base.images[0].get_array()[:, :2], [[0, 0], [1, 1]])
    changes = always_on.images[0].get_array()
    np.testing.assert_allclose(changes[:, :2], [[0, 0.3], [0, 0.3]])
    assert np.ma.getmaskarray(changes)[:, 2].all()
    ((x, y),) = [line.get_data() for line in always_on.lines]
    assert list(zip(x, y, strict=True)) == [(1, 0), (1, 1)]
    assert always_on.images[0].get_clim() == (pytest.approx(-0.3), pytest.approx(0.3)), "blank cells have no say"


def test_a_base_alone_has_one_panel() -> None:
    alone = [row for row in SCORES if row["source"] == "base"]
    panels = [axes for axes in heads_figure(PROBES, alone).axes if axes.images]
    assert len(panels) == 1
    assert len([axes for axes in positions_figure(alone).axes if axes.images]) == 1
