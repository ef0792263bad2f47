"""An evaluation whose engine misbehaves: what it answered is kept, the same command goes on, and no key is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_engine import DROP, GOOD, FakeEngine, Reply

from reft_math.files.records import RecordFile

KEY = "sk-our-secret-0123"


def records(folder: Path) -> dict[str, object]:
    return RecordFile(folder / "records" / "base.jsonl").done


@pytest.mark.parametrize("sampling", ["", "--temperature 1 --samples 2"])
def test_a_stop_keeps_what_was_answered_and_the_same_command_goes_on_with_the_rest(
    call: Callable[[str], None],
    engine_server: FakeEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    sampling: str,
) -> None:
    """Two stops: within the second batch and in the last. What the server says holds the key."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    line = f"eval/arithmetic.py --limit {6 if sampling else 12} --batch-size 5 --engine {engine_server.url} {sampling}"
    call(f"{line} --output-dir {tmp_path}/whole")
    whole, run = records(tmp_path / "whole"), tmp_path / "stopped"
    assert len(whole) == 12
    engine_server.requests.clear()
    line += f" --engine-concurrency 1 --output-dir {run}"
    out = Reply(500, {"error": f"out of memory, Bearer {KEY}"})
    counts = []
    for replies in ([DROP, *[GOOD] * 8, out], [*[GOOD] * 3, Reply(401, {"error": f"{KEY} expired"})], [GOOD]):
        engine_server.replies = replies
        asked = len(engine_server.requests)
        if replies[-1] is GOOD:
            call(f"{line} --resume")
        else:
            with pytest.raises(SystemExit) as stopped:
                call(f"{line} --resume" if counts else line)
            assert stopped.value.code == 2
            (error,) = [text for text in capfd.readouterr().err.splitlines() if text.startswith("error: ")]
            assert error.endswith("; what is recorded is kept, and the same command goes on with --resume")
            assert "***" in error
        counts.append((len(records(run)), len(engine_server.requests) - asked))
    assert records(run) == whole
    # Eight are answered, the ninth is tried three times. Batches are decoded anew as a whole.
    assert counts == [(8, 12), (8, 4), (12, 7)]
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "address", ["http://me:sk-our-secret-0123@h/v1", "http://h/v1?key=sk-our-secret-0123", "sk-our-secret-0123", "h:1"]
)
def test_an_address_that_may_hold_a_secret_is_neither_taken_nor_repeated(
    call: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str], address: str
) -> None:
    (tmp_path / "settings.yaml").write_text(f"engine: {address}\n")
    for given in (f"--engine {address}", f"--config {tmp_path}/settings.yaml"):
        with pytest.raises(SystemExit) as stopped:
            call(f"eval/arithmetic.py {given} --output-dir {tmp_path}/run")
        assert stopped.value.code == 2
        out, error = capfd.readouterr()
        assert error.startswith("error: --engine ")
        assert error.count("\n") == 1
        assert KEY not in out + error
    assert not (tmp_path / "run").exists()
