"""Lists every reader of files that may be untrusted or damaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.fuzzing.sound import make_data, make_models, make_results, make_runs, resumed

TESTS = ("gsm8k", "math500", "svamp", "mawps")  # sets that have a test split


@dataclass(frozen=True)
class Reader:
    """A reader of a folder, and the files in it to damage."""

    folder: str
    files: tuple[str, ...]
    read: Callable[[Path], object]


def make_readers(folder: Path) -> dict[str, Reader]:
    """Readers by name, after sound files for them are made in the folder."""
    model = make_models(folder)
    make_data(folder / "data")
    make_runs(folder)
    make_results(folder)
    return {**_data_readers(), **_adapter_readers(model), **_base_readers(), **_run_readers(), **_result_readers()}


def _data_readers() -> dict[str, Reader]:
    """The data sets that are files at hand, and one's own."""
    from reft_math.data import amazon, movielens
    from reft_math.data.registry import load_problems
    from reft_math.data.regression_rows import load_regression, load_splits
    from reft_math.scoring.elsewhere import read_entries

    def problems(name: str, split: Any, path: Path) -> None:
        load_problems(name, split, data_dir=str(path))

    @mock.patch.dict(amazon.SIZES, {"test": 2, "validation": 2, "train": 8})
    @mock.patch.object(movielens, "HELD_OUT", 1)
    def numbers(name: str, split: Any, path: Path) -> None:
        load_regression(name, split, str(path))

    def own(name: str, read: Callable[[str], object]) -> Reader:
        return Reader("data", (name,), lambda path: read(str(path / name)))

    return {
        **{name: Reader("data", (f"{name}/*",), partial(problems, name, "test")) for name in TESTS},
        "math10k": Reader("data", ("math10k/*",), partial(problems, "math10k", "train")),
        "STS-B": Reader("data", ("stsb/*",), partial(numbers, "stsb", "validation")),
        "Amazon": Reader("data", ("amazon/*.tsv",), partial(numbers, "amazon:wireless", "train")),
        "Amazon, packed": Reader("data", ("amazon/*.gz",), partial(numbers, "amazon:music", "train")),
        "MovieLens": Reader("data", ("movielens/*",), partial(numbers, "movielens", "test")),
        "problems": own("own.jsonl", lambda name: load_problems(name, "train")),
        "problems, a list": own("own.json", lambda name: load_problems(name, "train")),
        "regression rows": own("rows.jsonl", load_splits),
        "regression table": own("rows.csv", load_splits),
        "completions": own("made.jsonl", lambda name: read_entries([name])),
    }


def _adapter_readers(model: Any) -> dict[str, Reader]:
    """Adapters and regressors, ours and others', and what is written about them."""
    from interventions import PrefixReftModel, import_checkpoint
    from reft_math.models import load_model
    from reft_math.models.adapter_files import count_parameters
    from reft_math.models.card import read_card, update_card
    from reft_math.regression.build import load_regressor

    def adapter(path: Path) -> None:
        count_parameters(path)
        PrefixReftModel.from_pretrained(path, model).unload()

    def imported(path: Path, **unsaid: str) -> None:
        import_checkpoint(path, model, **unsaid).unload()

    def card(path: Path) -> None:
        update_card(read_card(path) or "", "# new\n")

    files = ("reft_config.json", "reft_model.safetensors", "README.md")
    return {
        "RED": Reader("red", files, adapter),
        "LoReFT": Reader("loreft", files, adapter),
        "pyreft's folder": Reader("pyreft", ("*",), partial(imported, act_fn="linear")),
        "BREP's file": Reader("brep", ("*",), partial(imported, gate="always")),
        "peft adapter": Reader("peft", ("*.json", "*.safetensors"), lambda path: load_model(str(path))),
        "regressor": Reader("regressor", ("*.json", "*.safetensors", "adapter/reft_*"), load_regressor),
        "regressor, LoRA": Reader("regressor-lora", ("*.json", "adapter/*"), load_regressor),
        "card": Reader("red", ("README.md",), card),
    }


def _base_readers() -> dict[str, Reader]:
    from reft_math.data.templates import encode_prompt, get_template
    from reft_math.models import load_model, load_tokenizer

    def base(path: Path) -> None:
        tokenizer = load_tokenizer(str(path))
        encode_prompt(get_template("auto", tokenizer), "How many?", tokenizer)
        load_model(str(path))

    def weights(path: Path) -> None:
        load_model(str(path))

    return {
        # Not its config.json: layers without end are the model that the user chose.
        "base": Reader("base", ("chat*", "generation*", "model*", "token*"), base),
        "base, sharded": Reader("base-sharded", ("model*",), weights),
        "base, pickled": Reader("base-pickled", ("*.bin",), weights),
    }


def _run_readers() -> dict[str, Reader]:
    """Readers of the files from which a run resumes."""
    from reft_math.commands.options.prefix import PrefixReftOptions
    from reft_math.commands.output_folder import check_claim
    from reft_math.commands.parser import parse
    from reft_math.experiments.quick import run_suite
    from reft_math.files.records import RecordFile
    from reft_math.probes.files import load_probes
    from reft_math.training.checkpoints import damage, newest_whole

    def config(path: Path) -> None:
        parse(PrefixReftOptions, None, ["--config", str(path / "setting.yaml")])

    def resume(path: Path) -> None:
        check_claim(resumed(path), {"train": {"rows": 3, "sha256": "a"}})

    def records(path: Path) -> None:
        RecordFile(path / "one" / "records" / "prefix.jsonl")

    def probes(path: Path) -> None:
        load_probes(path / "probes.safetensors")

    def checkpoint(path: Path) -> None:
        newest = newest_whole(path)
        if newest is None or (newest.name == "checkpoint-1") == (damage(path / "checkpoint-2") is None):
            raise AssertionError(f"of two checkpoints, one of them whole, {newest} was taken")

    return {
        "--config": Reader("run", ("setting.yaml",), config),
        "--resume, settings": Reader("run", ("run_config.json",), resume),
        "--resume, records": Reader("runs", ("one/records/*",), records),
        "--resume, checkpoints": Reader("run", ("checkpoint-2/*",), checkpoint),
        "--resume, probes": Reader("run", ("probes.safetensors",), probes),
        "--resume, suite": Reader("run", ("finished.json",), lambda path: run_suite((), path, path)),
    }


def _result_readers() -> dict[str, Reader]:
    """Readers of run folders for one page. Commands that compare runs take results as other commands wrote them."""
    from reft_math.experiments.report import report_page
    from reft_math.experiments.result_folders import find_result_folders

    def reported(path: Path) -> None:
        report_page(find_result_folders(path), "", {"command": ""})

    return {"report": Reader("runs", ("*/*.json", "*/*.csv"), reported)}
