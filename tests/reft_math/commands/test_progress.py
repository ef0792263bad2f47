from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from reft_math.commands import progress as bars
from reft_math.commands.progress import progress


def test_a_bar_goes_to_standard_error_with_name_and_unit(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress([1, 2], name="base", unit="row")) == [1, 2]
    out, err = capsys.readouterr()
    assert out == ""
    assert "base: 100%" in err
    assert " row/s]" in err


def test_only_the_main_process_shows_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bars, "process_state", lambda: SimpleNamespace(is_main_process=False))
    with progress(name="base", unit="row", total=2) as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("is_terminal", "states"), [(True, 5), (False, 2)])
def test_a_log_file_gets_the_start_and_the_end_of_what_is_quick(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_terminal: bool, states: int
) -> None:
    monkeypatch.setattr(bars, "_ON_TERMINAL", 0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    with progress(name="base", unit="row", total=3) as bar:
        for _ in range(3):
            bar.update()
    assert capsys.readouterr().err.count("base:") == states
