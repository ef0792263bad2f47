"""Damages files of every kind that is read, for as long as it is told: they are read, or refused in one line.

    uv run benchmarks/fuzz.py --seconds 600 --finds results/fuzz

What else came out (another exception, more than 20 seconds) is printed once for each place it came from, its file kept
in ``--finds``, and the exit code is 1. Bytes are flipped, cut, doubled and put in; values of JSON are exchanged,
deleted and doubled. All in one process, on tiny models; the same seed draws the same damage.
"""

from __future__ import annotations

import contextlib
import io
import json
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
from typing import Any
from unittest import mock

from reft_math.command import print_table, run
from reft_math.errors import UserError, require
from reft_math.files import write_json

ROOT = Path(__file__).resolve().parents[1]
HANG = 20  # seconds
LIBRARIES = "site-packages"  # an environment may lie within the checkout
KINDS = ("read", "refused", "found")
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 3, 1.5, 10**30, -(2**70), 1e308, float("nan"), float("inf"), [], {}, [None], {"a": 1}, [1, 2]),
    *(
        "",
        "a",
        "a" * 3000,
        "\ud800",
        "\0",
        "a\nb\x1b[2J",
        "../../secret",
        "/etc/passwd",
        "<class 'os.system'>",
        "{layer}",
    ),
    *("kl:1", "tokens:99999999999999999999", "0-99999999999", "1_000", "1e999999999", "-1e99999", "9" * 5000),
)
ODD_BYTES = (
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\r", b"\n", b"\t", b"\x85", b"\x1f\x8b", b"\x1b[2J"),
    *(b'"', b"{", b"}", b"[", b"]", b",", b":", b"NaN", b"null", b"\\ud800", b"{{", b"{%", b"&a [*a]", b"9" * 5000),
    *(b"[" * 100_000, b'{"a":' * 20_000),
)


@dataclass(frozen=True)
class FuzzOptions:
    seconds: float = field(default=600.0, metadata={"help": "For how long, the making of sound files not counted."})
    seed: int = field(default=0, metadata={"help": "Of the damage."})
    only: list[str] = field(default_factory=list, metadata={"help": "Readers, by the names in the table (all)."})
    finds: str = field(default="results/fuzz", metadata={"help": "Folder for what was neither read nor refused."})
    json: str | None = field(default=None, metadata={"help": "File for the figures."})

    def __post_init__(self) -> None:
        require(self, "seconds", lambda value: value > 0, "more than 0")


@dataclass(frozen=True)
class Reader:
    """What reads a folder, and the files of it that are damaged."""

    folder: str
    files: tuple[str, ...]
    read: Callable[[Path], object]


# --- damage -----------------------------------------------------------------------------------------------------------


def damaged(content: bytes, rng: random.Random) -> bytes:
    """JSON by its values more often than not, everything else by its bytes."""
    if rng.random() < 0.6:
        with contextlib.suppress(ValueError):
            return json.dumps(_other_values(json.loads(content), rng)).encode()
        with contextlib.suppress(ValueError):  # a line of several, or the header of a safetensors file
            start, end = _json_within(content, rng)
            text = json.dumps(_other_values(json.loads(content[start:end]), rng)).encode()
            size = len(text).to_bytes(8, "little") if start == 8 else content[:start]
            return size + text + content[end:]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        content = _other_bytes(content, rng)
    return content


def _json_within(content: bytes, rng: random.Random) -> tuple[int, int]:
    header = int.from_bytes(content[:8], "little")
    if 0 < header < len(content):
        return 8, 8 + header
    start = content.rfind(b"\n", 0, rng.randrange(len(content) + 1)) + 1
    return start, (content + b"\n").find(b"\n", start)


def _other_bytes(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    end = min(len(content), start + rng.choice((1, 1, 2, 8, 64, len(content))))
    before, between, after = content[:start], content[start:end], content[end:]
    return rng.choice(
        (
            before,
            before + after,
            before + rng.choice(ODD_BYTES) + between + after,
            before + rng.choice(ODD_BYTES) + after,
            before + bytes(byte ^ (1 << rng.randrange(8)) for byte in between[:1]) + between[1:] + after,
            before + between + between + after,
            before + rng.randbytes(4) + after,
        )
    )


def _other_values(value: Any, rng: random.Random) -> Any:
    """``value``, changed in place where it is a container."""
    places = list(_places(value))
    if not places:
        return rng.choice(ODD_VALUES)
    for _ in range(rng.choice((1, 1, 1, 2))):
        container, key = rng.choice(places)
        if key not in (container if isinstance(container, dict) else range(len(container))):
            continue
        way = rng.random()
        if way < 0.1:
            del container[key]
        elif way < 0.2 and isinstance(container, dict):
            container[rng.choice(("extra", "../x", "", "\0"))] = rng.choice(ODD_VALUES)
        elif way < 0.3:
            other, place = rng.choice(places)
            with contextlib.suppress(LookupError):
                container[key] = json.loads(json.dumps(other[place]))
        else:
            container[key] = rng.choice(ODD_VALUES)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


# --- readers ----------------------------------------------------------------------------------------------------------


def make_readers(folder: Path) -> dict[str, Reader]:
    """Readers by name, after sound files for them are made in the folder."""
    from interventions import PrefixReftModel, import_checkpoint
    from interventions.regression import load_regressor
    from reft_math import regression_comparison
    from reft_math.card import read_card, update_card
    from reft_math.comparison import Run, cells, comparison_rows
    from reft_math.data.registry import load_problems
    from reft_math.data.regression import load_splits
    from reft_math.figures.convergence import convergence_figure
    from reft_math.figures.report import report_page
    from reft_math.generations import read_entries
    from reft_math.models import load_model
    from reft_math.result_folders import find_result_folders

    model = _make_models(folder)
    _make_data(folder / "data")
    _make_results(folder)
    card = (folder / "red" / "README.md").read_text(encoding="utf-8")

    def adapter(path: Path) -> None:
        PrefixReftModel.from_pretrained(path, model).unload()

    def imported(path: Path, **unsaid: str) -> None:
        import_checkpoint(path, model, **unsaid).unload()

    def compared(path: Path) -> None:
        entries = read_entries([str(path / "one")])
        for row in comparison_rows(entries, entries[0].name):
            cells(row)

    def regressors_compared(path: Path) -> None:
        runs = [Run.read(str(path))]
        regression_comparison.comparison_rows(runs)
        convergence_figure(runs)

    adapter_files = ("reft_config.json", "reft_model.safetensors", "README.md")
    return {
        "problems": Reader("data", ("own.jsonl",), lambda path: load_problems(str(path / "own.jsonl"), "train")),
        "problems, a list": Reader("data", ("own.json",), lambda path: load_problems(str(path / "own.json"), "train")),
        "regression rows": Reader("data", ("rows.jsonl",), lambda path: load_splits(str(path / "rows.jsonl"))),
        "regression table": Reader("data", ("rows.csv",), lambda path: load_splits(str(path / "rows.csv"))),
        "completions": Reader("data", ("made.jsonl",), lambda path: read_entries([str(path / "made.jsonl")])),
        "RED": Reader("red", adapter_files, adapter),
        "LoReFT": Reader("loreft", adapter_files, adapter),
        "pyreft's folder": Reader("pyreft", ("*",), lambda path: imported(path, act_fn="linear")),
        "BREP's file": Reader("brep", ("*",), lambda path: imported(path, gate="always")),
        "regressor": Reader("regressor", ("*.json", "*.safetensors", "adapter/reft_*"), load_regressor),
        "regressor, LoRA": Reader("regressor-lora", ("*.json", "adapter/*"), load_regressor),
        "base": Reader("base", ("*",), _read_base),
        "peft adapter": Reader("peft", ("*.json", "*.safetensors"), lambda path: load_model(str(path))),
        "card": Reader("red", ("README.md",), lambda path: update_card(read_card(path) or "", card)),
        "runs": Reader("runs", ("one/results.json", "one/records/*"), compared),
        "regression run": Reader("regression-run", ("results.json", "records/*"), regressors_compared),
        "report": Reader(
            "runs", ("*/*.json", "*/*.csv"), lambda path: report_page(find_result_folders(path), "", {"command": ""})
        ),
    }


def _read_base(path: Path) -> None:
    from reft_math.data.templates import encode_prompt, get_template
    from reft_math.models import load_model, load_tokenizer

    with contextlib.suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
        if json.loads((path / "config.json").read_bytes())["num_hidden_layers"] > 1000:
            return  # they are made, one after the other: how large a base is, is the user's to judge
    tokenizer = load_tokenizer(str(path))
    encode_prompt(get_template("auto", tokenizer), "How many?", tokenizer)
    load_model(str(path))


def _make_models(folder: Path) -> Any:
    """Base, adapters and regressors, and the base that adapters are read onto."""
    import peft
    import pyreft
    import torch
    import transformers

    from interventions import PrefixReftConfig, get_prefix_reft_model
    from interventions.regression import make_regressor
    from reft_math.arithmetic.tokenizer import build_tokenizer
    from reft_math.models import load_model, load_tokenizer
    from reft_math.regressor.config import RegressorConfig

    torch.manual_seed(0)
    tokenizer, base = build_tokenizer(), str(folder / "base")
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), eos_token_id=2, **size)
    transformers.LlamaForCausalLM(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    model = load_model(base)
    loreft: dict[str, Any] = {"intervention": "loreft", "site": "block", "rank": 2, "act_fn": "relu"}
    for name, changes in (("red", {}), ("loreft", loreft)):
        reft_model = get_prefix_reft_model(model, PrefixReftConfig(base_model="arithmetic", k=10, **changes))
        reft_model.save_pretrained(folder / name)
        reft_model.unload()
    places = [
        {
            "layer": layer,
            "component": "block_output",
            "intervention": pyreft.LoreftIntervention(embed_dim=32, low_rank_dimension=2),
        }
        for layer in range(2)
    ]
    pyreft.get_reft_model(load_model(base), pyreft.ReftConfig(representations=places)).save(str(folder / "pyreft"))
    (folder / "brep").mkdir()
    key = "model.layers.0.mlp.up_proj.delta_vector.activation"
    torch.save(
        {f"{key}_{name}": torch.ones(1, 48) for name in ("scaling", "bias")}, folder / "brep" / "delta_vector.pth"
    )
    lora = peft.get_peft_model(load_model(base), peft.LoraConfig(target_modules=["q_proj"]))
    lora.peft_config["default"].base_model_name_or_path = base
    lora.save_pretrained(folder / "peft")
    for name, loss, tune in (("regressor", "head:mean", "red"), ("regressor-lora", "raft", "lora")):
        settings = RegressorConfig(loss=loss, tune=tune, base_model=base)  # type: ignore[arg-type]
        make_regressor(load_model(base), load_tokenizer(base), settings).save_pretrained(folder / name)
    return model


def _make_data(folder: Path) -> None:
    folder.mkdir()
    problems = [{"question": f"q {row}", "solution": "s", "answer": row} for row in range(6)]
    rows = [{"id": str(row), "text": f"t {row}", "target": row / 2} for row in range(14)]
    made = [{"question": f"q {row}", "gold": row, "completion": f"#### {row}"} for row in range(6)]
    for name, values in {"own": problems, "rows": rows, "made": made}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))
    (folder / "own.json").write_text(json.dumps(problems))
    (folder / "rows.csv").write_text("id,text,target\n" + "".join(f'{row},"a, {row}",{row}\n' for row in range(14)))


def _make_results(folder: Path) -> None:
    summary = {"correct": 3, "total": 6, "accuracy": 0.5, "interval_95": [0.2, 0.8], "strict": 3, "mean_tokens": 4.0}
    trained = {"learning_rate": 0.1, "epochs": 3.0, "k": 10, "full_fraction": 0.0, "model": "arithmetic"}
    results = {"config": trained, "train_rows": 64, "trainable_parameters": 3072, "evaluation": {"prefix": summary}}
    scored = {"gold": "1", "completion": "x", "correct": True, "strict": False}
    for name in ("one", "two"):
        records = [{"id": str(row), "question": f"q {row}", **scored} for row in range(6)]
        _make_run(folder / "runs" / name, results, "prefix", records)
        (folder / "runs" / name / "table.csv").write_text("a,b\n1,2.5\n")
    estimate = {"rmse": {"value": 1.0, "interval_95": [0.5, 1.5]}}
    regression = {
        "regressor": {"random_seed": None, "tune": "red", "loss": "raft"},
        "training": {"trained_parameters": 5, "best_step": 10, "steps": [0, 10], "rmse": [2.0, 1.0]},
        "predictor": "rail",
        "rmse_of_training_mean": 2.0,
        "evaluation": {"tuned": {"predictors": {"rail": estimate}}},
    }
    rows = [{"id": str(row), "text": f"t {row}", "predictions": {"rail": row + 0.5}, "target": row} for row in range(6)]
    _make_run(folder / "regression-run", regression, "tuned", rows)


def _make_run(folder: Path, results: dict[str, Any], name: str, records: list[dict[str, Any]]) -> None:
    (folder / "records").mkdir(parents=True)
    write_json(folder / "results.json", results)
    (folder / "records" / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


# --- the trial --------------------------------------------------------------------------------------------------------


class Hang(BaseException):
    """So that no reader takes it for what is wrong with a file."""


def _stop(*_: object) -> None:
    raise Hang


def outcome(read: Callable[[Path], object], path: Path) -> BaseException | None:
    """What a reader raised."""
    signal.alarm(HANG)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            read(path)
    except (Exception, Hang) as error:
        return error
    finally:
        signal.alarm(0)
    return None


def where(error: BaseException) -> str:
    """The last of our lines that an error came through."""
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
        """Damages copies of ``sound`` and has them read; adds to ``finds``, by place, what else came out."""
        if error := outcome(self.reader.read, sound):
            raise AssertionError(f"{self.name}: a sound file is not read") from error
        work = sound.parent.parent / "work"
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            shutil.copytree(sound, work)
            files = [path for pattern in self.reader.files for path in sorted(work.glob(pattern)) if path.is_file()]
            path = rng.choice(files)
            path.write_bytes(damaged(path.read_bytes(), rng))
            error = outcome(self.reader.read, work)
            if error is None or isinstance(error, UserError):
                self.counts["read" if error is None else "refused"] += 1
            else:
                self.counts["found"] += 1
                if (place := where(error)) not in finds:
                    finds[place] = f"{self.name}: {error}"[:200]
                    shutil.copytree(work, keep / f"{len(finds)}-{self.reader.folder}", dirs_exist_ok=True)
            shutil.rmtree(work)


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
