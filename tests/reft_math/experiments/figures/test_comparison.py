from __future__ import annotations

from reft_math.experiments.figures.comparison import comparison_figure


def test_draws_every_row_with_its_interval_and_the_reference() -> None:
    rows = [
        {"run": "one", "decoder": "base", "total": 40, "accuracy": 0.1, "low": 0.05, "high": 0.2},
        {"run": "one", "decoder": "prefix", "total": 40, "accuracy": 0.9, "low": 0.8, "high": 0.95},
        {"run": "two", "decoder": "lora", "total": 40, "accuracy": 0.5, "low": 0.4, "high": 0.6},
    ]
    (axes,) = comparison_figure(rows, "two:lora").axes
    *lines, reference = axes.lines
    for position, (row, interval, dot) in enumerate(zip(rows, lines[::2], lines[1::2], strict=True)):
        assert interval.get_xydata().tolist() == [[row["low"], position], [row["high"], position]]
        assert dot.get_xydata().tolist() == [[row["accuracy"], position]]
    assert list(reference.get_xdata()) == [0.5, 0.5]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["one:base", "one:prefix", "two:lora"]
    assert "n = 40" in axes.get_xlabel()
    colours = [line.get_color() for line in lines[1::2]]
    assert colours[0] == colours[1] != colours[2]
    low, high = axes.get_ylim()
    assert low > high  # from top to bottom, as in the table
