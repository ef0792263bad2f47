from __future__ import annotations

import pytest

from reft_math.experiments.figures.kl_profile import kl_profile_figure
from reft_math.experiments.kl_profile import kl_profile


def test_a_profile_by_hand() -> None:
    """Rows end at different places; C counts a row's own past."""
    records = [{"kl": [1.0, 0.0, 3.0]}, {"kl": [2.0, 1.0]}, {"kl": [6.0, 5.0]}]
    first, second, third = kl_profile(records)
    assert list(first) == ["position", "rows", "mean", "25 %", "median", "75 %", "95 %", "mean of C"]
    assert (first["rows"], first["mean"], first["median"], first["mean of C"]) == (3, 3.0, 2.0, 3.0)
    assert (second["rows"], second["mean"], second["mean of C"]) == (3, 2.0, pytest.approx((1 + 3 + 11) / 3))
    assert (third["position"], third["rows"], third["mean"], third["mean of C"]) == (2, 1, 3.0, 4.0)

    banded = kl_profile([{**record, "dead_band": 0.5} for record in records])
    assert [row["mean"] for row in banded] == [row["mean"] for row in (first, second, third)]
    assert [row["mean of C"] for row in banded] == [2.5, pytest.approx((0.5 + 2 + 10) / 3), 3.0]


def test_the_figure_has_a_line_for_each_family_of_gates() -> None:
    summary = {
        "accuracy": 0.5,
        "interval_95": [0.4, 0.6],
        "total": 20,
        "first_quartile_closing_position": 1,
        "median_closing_position": 3,
        "third_quartile_closing_position": 7,
    }
    gates = {gate: dict(summary) for gate in ("kl:1", "kl:2", "kl:1,min=1", "kl:2,min=1", "tokens:4", "tokens:2")}
    gates["kl:2"]["median_closing_position"] = None  # never closed
    figure = kl_profile_figure(kl_profile([{"kl": [1.0, 0.5]}]), gates, {"base": {"accuracy": 0.1, "total": 20}})
    divergence, closings, thresholds, tokens = figure.axes
    assert divergence.lines[0].get_ydata().tolist() == [1.0, 0.5]
    assert [line.get_label() for line in thresholds.lines] == ["C ≤ threshold", "C ≤ threshold, min=1", "base"]
    assert list(tokens.lines[0].get_xdata()) == [2, 4]
    assert [list(line.get_xydata()[0]) for line in closings.lines] == [[1, 3], [1, 3]]
    assert [len(line.get_xdata()) for line in closings.lines] == [1, 2]
    assert "n = 20" in figure.get_suptitle()
