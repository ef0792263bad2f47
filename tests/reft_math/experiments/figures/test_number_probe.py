"""What the figures of number_probe.py draw where the command's own test does not come: many layers, nothing to show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex

from reft_math.experiments.figures.number_probe import changes_figure, probes_figure, pushes_figure
from reft_math.files.plots import PALETTE
from reft_math.probes.number_tables import Changes, histogram_rows, position_rows, share_rows


def reading(layer: int, place: str = "all", numbers: int = 50, **other: Any) -> dict[str, Any]:
    values = {"r2": 0.9 - layer / 10, "r2_low": 0.5, "r2_high": 1.0, "error": 3.0, "error_low": 2.0, "error_high": 4.0}
    head = {"site": "block", "layer": layer, "reads": "number", "target": "identity", "where": "all", "place": place}
    return {**head, "numbers": numbers, "problems": 9, **values, **other}


def push(alpha: float, direction: str, **other: Any) -> dict[str, Any]:
    row = {"where": "all layers", "direction": direction, "alpha": alpha, "alpha_raw": 7 * alpha, "sums": 1000}
    return {**row, "error_rate": abs(alpha) / 2, "low": 0.0, "high": 0.9, "draws": 3, **other}


def changes_of(layers: int, scale: float) -> Changes:
    rng = np.random.default_rng(layers)
    projections = [scale * rng.standard_normal((5, layers)) for _ in range(4)]
    return Changes(projections, [np.abs(rows) * 2 for rows in projections], [5] * 4)


def draw(changes: Changes, negative: float | None, positive: float | None) -> Any:
    layers = changes.projections[0].shape[1]
    rows = list(histogram_rows({"on": changes}))
    shares, positions = share_rows("on", changes, negative, positive), position_rows("on", changes, np.ones(layers))
    return changes_figure(rows, shares, positions, {"-": negative, "+": positive})


def test_places_stand_in_reading_order_and_small_ones_are_left_out() -> None:
    places = ("result 1", "term 2", "question 2", "term 10", "question 1")
    rows = [reading(layer, place, where="problems") for layer in (0, 1) for place in places]
    rows += [reading(layer, "result 1", where="sums") for layer in (0, 1)]
    rows += [reading(layer, "question 3", numbers=29, where="problems") for layer in (0, 1)]
    whole = [reading(layer, target=target) for layer in (0, 1) for target in ("identity", "log2")]
    axes = probes_figure([*whole, *rows]).axes
    labels = [text.get_text().partition("\n")[0] for text in axes[3].get_xticklabels()]
    expected = ("question 1", "question 2", "term 2", "term 10", "result 1")
    assert labels == ["sum: result 1", *(f"problem: {place}" for place in expected)]
    np.testing.assert_allclose(axes[3].images[0].get_array(), [[0.9] * 6, [0.8] * 6])


def test_no_place_with_enough_numbers_leaves_the_panel_empty() -> None:
    axes = probes_figure([reading(0, target=target) for target in ("identity", "log2")]).axes
    assert not axes[3].images


def test_thresholds_are_drawn_where_there_are_any() -> None:
    pushes = [push(alpha, kind) for kind in ("probe", "random", "orthogonal") for alpha in (-0.1, 0.0, 0.1)]
    where = {"where": "all layers", "direction": "probe"}
    thresholds = [{**where, "sign": "-", "threshold": 0.05}, {**where, "sign": "+", "threshold": None}]
    (axes,) = pushes_figure(pushes, thresholds).axes
    assert [line.get_xdata()[0] for line in axes.lines[3:4]] == [-0.05]
    assert axes.get_title() == "all layers, n = 1000 sums"
    assert "1 is 7 raw" in axes.get_xlabel()


@pytest.mark.parametrize("layers", [4, 30])
def test_every_layer_has_a_colour_of_its_own(layers: int) -> None:
    panel = draw(changes_of(layers, 0.1), 0.1, 0.2).axes[0]
    colors = [to_hex(patch.get_edgecolor()) for patch in panel.patches]
    assert len(set(colors)) == layers
    assert layers > len(PALETTE) or colors == [color.lower() for color in PALETTE[:layers]]
    assert len(panel.get_legend().get_texts()) == min(layers, 4 if layers == 4 else 3)


@pytest.mark.parametrize(
    ("scale", "negative", "positive", "text"),
    [
        (0.0, 0.1, 0.1, "beyond: 0.00%"),
        (0.1, None, None, "sums never broke"),
        (9.0, 1e-3, 1e-3, "beyond: 100.00% (100.00%"),
    ],
)
def test_the_share_is_said_if_it_is_known(scale: float, negative: float, positive: float, text: str) -> None:
    assert text in draw(changes_of(4, scale), negative, positive).axes[0].get_title()


@pytest.mark.filterwarnings("ignore:Data has no positive values")
def test_a_gate_that_never_opened_is_an_empty_panel() -> None:
    empty = Changes([np.empty((0, 4))] * 2, [np.empty((0, 4))] * 2, [3, 3])
    assert "the gate never opened" in draw(empty, 0.1, 0.1).axes[0].get_title()
