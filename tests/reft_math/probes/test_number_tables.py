from __future__ import annotations

import numpy as np
import pytest

from reft_math.files.tables import lines
from reft_math.probes.number_tables import (
    Changes,
    Push,
    form_row,
    histogram_rows,
    position_rows,
    push_row,
    share_rows,
    threshold_rows,
    wrong_sums,
)
from reft_math.scoring.statistics import wilson_interval

NORMS = np.array([10.0, 30.0])


def test_a_form_is_as_good_as_its_right_answers() -> None:
    low, high = wilson_interval(2, 4)
    row = form_row("worked", [3, 5, None, 9], [3, 5, 7, 8])
    assert row == {"form": "worked", "sums": 4, "correct": 2, "accuracy": 0.5, "low": low, "high": high}


def test_errors_are_counted_on_both_sides() -> None:
    push = Push("all layers", (0, 1), "random", -0.5)
    row = push_row(push, [3, 4, 5, None, 5.5, 8], [3, 5, 4, 7, 5, 8], draws=2, norms=NORMS, shift=40.0)
    assert (row["wrong"], row["above"], row["below"], row["no_number"], row["sums"]) == (4, 2, 1, 1, 6)
    assert (row["alpha"], row["alpha_raw"], row["reading_shift"]) == (-0.5, -10.0, -20.0)
    assert (row["low"], row["high"]) == wilson_interval(4, 6)
    assert (row["lowest_draw"], row["highest_draw"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))


def test_a_push_of_nothing_is_the_same_everywhere() -> None:
    assert {Push(where, (1,), "probe", 0.0).id for where in ("all layers", "layer 1")} == {"unpushed"}
    assert Push("layer 1", (1,), "probe", 0.25).id == "layer 1/probe/+0.25"


def test_thresholds_are_found_on_each_side() -> None:
    pushes = [Push("layer 1", (1,), "probe", alpha) for alpha in (-0.2, -0.1, 0.1, 0.2)]
    wrong = {"unpushed": np.arange(1000) < 3}
    wrong |= {push.id: np.arange(1000) < count for push, count in zip(pushes, (43, 3, 3, 7), strict=True)}
    negative, positive = threshold_rows(pushes, wrong, NORMS)
    assert (negative["sign"], positive["sign"]) == ("-", "+")
    assert negative["threshold"] == pytest.approx(0.1125)
    assert negative["threshold_raw"] == pytest.approx(0.1125 * 30)
    assert negative["low"] < 0.1125 < negative["high"]
    assert positive["threshold"] is positive["threshold_raw"] is positive["high"] is None
    assert positive["largest"] == 0.2


@pytest.fixture
def changes() -> Changes:
    """Two solutions in two layers: three of four tokens with interventions, and one of two."""
    records = [
        {"num_tokens": 4, "projections": [[1.0, 3.0], [-4.0, 6.0], [0.0, -9.0]], "sizes": [[5.0, 30.0]] * 3},
        {"num_tokens": 2, "projections": [[3.0, 0.0]], "sizes": [[5.0, 30.0]]},
    ]
    return Changes.of(records, NORMS)


def test_shares_are_of_what_acts_and_of_all(changes: Changes) -> None:
    # In norms: (0.1, 0.1), (-0.4, 0.2), (0, -0.3), and (0.3, 0).
    first, second, both = share_rows("gated", changes, 0.3, 0.15)
    assert [row["layer"] for row in (first, second, both)] == ["0", "1", "all"]
    assert [row["beyond"] for row in (first, second, both)] == [2, 1, 3]
    assert [row["share"] for row in (first, second, both)] == [0.5, 0.25, 0.375]
    assert [row["share_of_all"] for row in (first, second, both)] == [2 / 6, 1 / 6, 3 / 12]
    assert both["low"] <= 0.375 <= both["high"]
    assert (first["size"], second["size"]) == (0.5, 1.0)
    assert first["along"] == pytest.approx((0.1**2 + 0.4**2 + 0.3**2) / (4 * 0.5**2))
    assert [row["beyond"] for row in share_rows("gated", changes, None, 0.15)] == [1, 1, 2]


def test_nothing_is_beyond_or_within_where_sums_never_break(changes: Changes) -> None:
    for row in share_rows("gated", changes, None, None):
        assert row["beyond"] is row["share"] is row["share_of_all"] is None


def test_histograms_hold_every_change_in_shared_bins(changes: Changes) -> None:
    rows = list(histogram_rows({"gated": changes, "once more": changes}))
    for source in ("gated", "once more"):
        for layer, column in enumerate(np.concatenate(changes.projections).T):
            bins = [row for row in rows if (row["source"], row["layer"]) == (source, layer)]
            edges = [bins[0]["from"], *(row["to"] for row in bins)]
            assert (edges[0], edges[-1]) == (-0.4, 0.4)
            assert [row["changes"] for row in bins] == np.histogram(column, edges)[0].tolist()
            assert sum(row["changes"] for row in bins) == 4


def test_the_base_changes_nothing_after_the_gate(changes: Changes) -> None:
    rows = position_rows("gated", changes, slopes=np.array([100.0, 1000.0]))
    assert [row["solutions"] for row in rows] == [2, 2, 1, 1]
    np.testing.assert_allclose([row["mean"] for row in rows], [0.25, -0.1, -0.3, 0], atol=1e-12)
    np.testing.assert_allclose([row["reading_shift"] for row in rows], [(110 + 30) / 2, (-40 + 200) / 2, -300, 0])
    assert rows[0]["median"] == pytest.approx(0.25)


def test_a_gate_that_never_opened_has_no_share() -> None:
    closed = Changes.of([{"num_tokens": 3, "projections": [], "sizes": []}] * 2, NORMS)
    whole = share_rows("gated", closed, 0.1, 0.1)[-1]
    assert (whole["share"], whole["low"], whole["share_of_all"], whole["size"], whole["along"]) == (
        None,
        None,
        0,
        None,
        None,
    )
    assert {row["changes"] for row in histogram_rows({"gated": closed})} == {0}
    assert [row["mean"] for row in position_rows("gated", closed, NORMS)] == [0, 0, 0]


def test_wrong_sums_are_those_that_are_not_the_sum() -> None:
    assert wrong_sums([3, None, 4.5], [3, 4, 4]).tolist() == [False, True, True]


def test_lines_are_for_people() -> None:
    assert lines([{"a": 0.123456, "b": None, "c": 3, "d": "x"}]) == [["a", "b", "c", "d"], ["0.1235", "-", "3", "x"]]
