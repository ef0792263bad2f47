"""That damage is damage, and that what a reader makes of it is told."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.fuzzing.damage import damaged
from reft_math.errors import UserError

SOUND = json.dumps({"a": [1, {"b": "c"}], "d": None}).encode()


@pytest.mark.parametrize(
    "content", [b"a line\n", SOUND, SOUND + b"\n" + SOUND + b"\n", len(SOUND).to_bytes(8, "little") + SOUND + b"1234"]
)
def test_the_same_seed_draws_the_same_damage(content: bytes) -> None:
    drawn = [damaged(content, random.Random(seed)) for seed in range(50)]
    assert drawn == [damaged(content, random.Random(seed)) for seed in range(50)]
    assert len(set(drawn)) > 20
    assert drawn.count(content) < 10


@pytest.mark.parametrize("kind", ["lookup", "hang"])
def test_what_is_neither_read_nor_refused_is_found_and_kept(
    command: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    fuzz = command("benchmarks/fuzz.py")

    def read(path: Path) -> None:
        try:
            text = (path / "a.json").read_bytes()
        except OSError as error:
            raise UserError("no file") from error
        if text.startswith(b"{") and text != SOUND:
            if kind == "hang":
                time.sleep(60)
            raise KeyError("a")
        if text != SOUND:
            raise UserError("no object")

    def make_readers(folder: Path) -> dict[str, object]:
        (folder / "data").mkdir()
        (folder / "data" / "a.json").write_bytes(SOUND)
        return {"toy": fuzz.Reader("data", ("*.json",), read)}

    monkeypatch.setattr(fuzz, "make_readers", make_readers)
    monkeypatch.setattr(fuzz, "HANG", 1)
    with pytest.raises(SystemExit):
        fuzz.main(fuzz.FuzzOptions(seconds=0.1, finds=str(tmp_path), json=str(tmp_path / "fuzz.json")))
    report = json.loads((tmp_path / "fuzz.json").read_text())
    assert report["counts"]["toy"]["found"] > 0
    (place,) = report["finds"]
    assert "test_fuzz.py" in place
    assert place.endswith({"lookup": "KeyError", "hang": "Hang"}[kind])
    assert (tmp_path / "1-data" / "a.json").read_bytes() != SOUND
    assert "found: " in capsys.readouterr().out


def test_every_reader_reads_its_sound_files_and_a_moments_damage(
    call: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(f"benchmarks/fuzz.py --seconds 0.01 --finds {tmp_path}/finds")
    assert "regressor, LoRA" in capsys.readouterr().out
    assert not (tmp_path / "finds").exists()
