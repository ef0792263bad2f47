"""Damage files of every kind for a given time and check that readers read them, or refuse them in one line.

    uv run benchmarks/fuzz.py --seconds 600 --finds results/fuzz

What else came out (another exception, more than 20 seconds) is printed once for each place it came from, its file kept
in ``--finds``, and the exit code is 1. Bytes are flipped, cut, doubled and put in; values of JSON are exchanged,
deleted and doubled. All in one process, on tiny models; the same seed draws the same damage.
"""

from __future__ import annotations

import contextlib
import io
import logging
import random
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from benchmarks.fuzzing.damage import damage
from benchmarks.fuzzing.readers import Reader, make_readers
from reft_math.commands.run import run
from reft_math.errors import UserError, require
from reft_math.files.atomic import write_json
from reft_math.files.tables import print_table

ROOT = Path(__file__).resolve().parents[1]
HANG = 20  # seconds
LIBRARIES = "site-packages"  # an environment may lie within the checkout
KINDS = ("read", "refused", "found")


@dataclass(frozen=True)
class FuzzOptions:
    seconds: float = field(default=600.0, metadata={"help": "Duration, without making sound files."})
    seed: int = field(default=0, metadata={"help": "Seed of the damage."})
    only: list[str] = field(default_factory=list, metadata={"help": "Readers, by the names in the table (all)."})
    finds: str = field(default="results/fuzz", metadata={"help": "Folder for files neither read nor refused."})
    json: str | None = field(default=None, metadata={"help": "File for the results."})

    def __post_init__(self) -> None:
        require(self, "seconds", lambda value: value > 0, "more than 0")


class Hang(BaseException):
    """So that no reader takes it for what is wrong with a file."""


def _stop(*_: object) -> None:
    raise Hang


def outcome(read: Callable[[Path], object], path: Path) -> BaseException | None:
    """The error that a reader raised."""
    signal.alarm(HANG)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            read(path)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        return error
    finally:
        signal.alarm(0)
    return None


def where(error: BaseException) -> str:
    """Returns the last line of our code in an error's traceback."""
    ours = [
        (path.relative_to(ROOT), frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if (path := Path(frame.filename)).is_relative_to(ROOT)
        and LIBRARIES not in path.parts
        and frame.name != _stop.__name__
    ]
    path, line = ours[-1]
    return f"{path}:{line}, {type(error).__name__}"


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Within it a slow reader is stopped, the hub is out of reach, and nobody warns of damage."""
    before = signal.signal(signal.SIGALRM, _stop)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Trial:
    """A reader's cases, counted by what came of them."""

    name: str
    reader: Reader
    counts: Counter[str] = field(default_factory=Counter)

    def run(self, sound: Path, seconds: float, rng: random.Random, finds: dict[str, str], keep: Path) -> None:
        """Damages a file of ``sound`` at a time and has them read; adds to ``finds``, by place, what else came out."""
        if error := outcome(self.reader.read, sound):
            raise AssertionError(f"{self.name}: a sound file is not read") from error
        files = [path for pattern in self.reader.files for path in sorted(sound.glob(pattern)) if path.is_file()]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with damage(rng.choice(files), rng):
                error = outcome(self.reader.read, sound)
                if error is None or isinstance(error, UserError):
                    self.counts["read" if error is None else "refused"] += 1
                    continue
                self.counts["found"] += 1
                if (origin := where(error)) not in finds:
                    finds[origin] = f"{self.name}: {error}"[:200]
                    kept = keep / f"{len(finds)}-{self.reader.folder}"
                    shutil.copytree(sound, kept, symlinks=True, dirs_exist_ok=True)


def main(options: FuzzOptions) -> None:
    rng = random.Random(options.seed)
    finds: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name, undisturbed():
        sound = Path(name) / "sound"
        sound.mkdir()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            readers = make_readers(sound)
        if unknown := set(options.only) - readers.keys():
            raise UserError(f"--only must be of {', '.join(readers)}; got {min(unknown)}")
        trials = [Trial(name, reader) for name, reader in readers.items() if name in (options.only or readers)]
        for trial in trials:
            seconds = options.seconds / len(trials)
            trial.run(sound / trial.reader.folder, seconds, rng, finds, Path(options.finds))
    counts = {trial.name: dict(trial.counts) for trial in trials}
    every = dict(sum((trial.counts for trial in trials), Counter()))
    rows = [
        [name, *(f"{value:,}" for value in (sum(count.values()), *(count.get(key, 0) for key in KINDS)))]
        for name, count in {**counts, "all": every}.items()
    ]
    print_table(f"damaged files, seed {options.seed}", ("", "cases", *KINDS), rows)
    if options.json is not None:
        write_json(Path(options.json), {"counts": counts, "finds": finds})
    for place, message in finds.items():
        print(f"found: {place}: {message}")
    if finds:
        raise SystemExit(1)


if __name__ == "__main__":
    run(main, FuzzOptions, __doc__)
