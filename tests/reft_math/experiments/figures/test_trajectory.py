from __future__ import annotations

from reft_math.experiments.figures.trajectory import trajectory_figure
from reft_math.probes.trajectory import FATES, SCORERS, parting_table, position_table


def test_lines_and_bars_are_the_tables() -> None:
    record = {"base": [-1.0, -2.0], "always_on": [-0.5, -1.0], "prefix": [-0.5, -2.0]}
    longer = {name: [*values, -3.0] for name, values in record.items()}  # one text is no mean
    positions = position_table({"reference": [record, record, longer], "base": [record, record]})
    tokens = {"base": ([3, 4], [3, 4], [5]), "prefix": ([3, 5], [3, 4], [6]), "always_on": ([3, 5], [3, 4], [6])}
    right = {"base": (True, True, False), "prefix": (True, True, True), "always_on": (False, True, False)}
    partings = parting_table(
        {
            name: [
                {"token_ids": row, "correct": correct} for row, correct in zip(tokens[name], right[name], strict=True)
            ]
            for name in tokens
        }
    )
    figure = trajectory_figure(positions, partings)
    above, below = figure.subfigs
    assert [axes.get_title() for axes in above.axes] == ["reference solutions (n = 3)", "answers by base (n = 2)"]
    for axes, text in zip(above.axes, ("reference", "base"), strict=True):
        for line, scorer in zip(axes.lines, SCORERS, strict=True):
            rows = [row for row in positions if (row["text"], row["scorer"]) == (text, scorer) and row["position"] < 2]
            assert line.get_label() == scorer
            assert line.get_xdata().tolist() == [0, 1]
            assert line.get_ydata().tolist() == [row["mean"] for row in rows]
    assert [axes.get_title() for axes in below.axes] == [
        "base / prefix (2 of n = 3 part)",
        "base / always_on (2 of n = 3 part)",
        "prefix / always_on (0 of n = 3 part)",
    ]
    for axes, pair in zip(below.axes, (("base", "prefix"), ("base", "always_on")), strict=False):
        rows = [row for row in partings if (row["first"], row["second"]) == pair and row["position"] is not None]
        for container, fate in zip(axes.containers, FATES, strict=True):
            bars = [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in container]
            assert bars == [(row["position"], row[fate]) for row in rows]
