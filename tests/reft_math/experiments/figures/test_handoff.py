from __future__ import annotations

from reft_math.experiments.figures.handoff import handoff_figure
from reft_math.probes.handoff import LENGTHS, handoff_table


def test_a_panel_for_each_set_and_a_line_for_each_source() -> None:
    records = [{"problem": name, "k": k, "continued": False, "correct": k > 4} for name in "ab" for k in LENGTHS]
    sets = {"all problems": {"a", "b"}, "problems always_on gets wrong": {"a"}, "problems base gets wrong": set()}
    table = handoff_table(sets, {"base": records, "always_on": records})
    figure = handoff_figure(table, sets)
    assert [axes.get_title() for axes in figure.axes] == [
        "all problems (n = 2)",
        "problems always_on gets wrong (n = 1)",
        "problems base gets wrong (n = 0)",
    ]
    for axes, problems in zip(figure.axes[:2], sets, strict=False):
        assert [text.get_text() for text in axes.get_xticklabels()] == [str(k) for k in LENGTHS]
        for line, band in zip(axes.lines, axes.collections, strict=True):
            rows = [row for row in table if (row["problems"], row["source"]) == (problems, line.get_label())]
            assert line.get_ydata().tolist() == [row["accuracy"] for row in rows]
            heights = band.get_paths()[0].vertices[:, 1]
            assert (heights.min(), heights.max()) == (min(row["low"] for row in rows), max(row["high"] for row in rows))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["base", "always_on"]
