"""The evaluation of regressors in this process: a trained one beside its base, and a base on its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reft_math.data.regression_rows import drawn, load_regression
from reft_math.models import load_model, load_tokenizer
from reft_math.regression.build import load_base, load_regressor, make_regressor
from reft_math.regression.config import RegressorConfig
from reft_math.regression.regressor import Regressor


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


def records(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    lines = (folder / "records" / f"{name}.jsonl").read_text().splitlines()
    return {record["id"]: record for record in map(json.loads, lines)}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., str]:
    """``saved(loss="raft", …)``: the folder of a regressor whose trained weights are noise."""

    def save(**settings: Any) -> str:
        config = RegressorConfig(
            **{"tune": "red", "grid": "0:9:1", "base_model": "arithmetic", "data": "original1", **settings}
        )
        torch.manual_seed(0)
        regressor = make_regressor(load_model("arithmetic"), load_tokenizer("arithmetic"), config)
        with torch.no_grad():
            for parameter in regressor.trainable_parameters().values():
                parameter.add_(torch.randn(parameter.shape) * 0.05)
        regressor.save_pretrained(tmp_path / "regressor")
        return str(tmp_path / "regressor")

    return save


@pytest.mark.parametrize(
    ("settings", "tuned", "base"),
    [
        ({}, 5, 5),
        ({"loss": "head:mean", "tune": "full"}, 1, 5),
        ({"grid": "0:9:0.5", "added_tokens": "first", "tune": "lora"}, 5, 5),
    ],
    ids=["RED", "a head", "added tokens"],
)
def test_a_regressor_stands_beside_its_base_over_the_same_grid(
    call: Callable[[str], None],
    tmp_path: Path,
    saved: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, Any],
    tuned: int,
    base: int,
) -> None:
    folder = saved(**settings)
    call(f"eval/regression.py --regressor {folder} --limit 9 --batch-size 4 --output-dir {tmp_path}/run")
    found = results(tmp_path / "run")
    assert [len(found["evaluation"][name]["predictors"]) for name in ("tuned", "base")] == [tuned, base]
    loaded = load_regressor(folder)
    predictor = loaded.regressor_config.predictor
    assert found["predictor"] == predictor
    rows = drawn(load_regression("original1", "test"), 9)
    texts, targets = [row.text for row in rows], np.array([row.target for row in rows])
    for name, regressor, its_own in [
        ("tuned", loaded, predictor),
        ("base", load_base(loaded.regressor_config), "rail"),
    ]:
        by_id = records(tmp_path / "run", name)
        predicted = np.array([by_id[row.id]["predictions"][its_own] for row in rows])
        assert predicted == pytest.approx(regressor.predict(texts, batch_size=1), rel=1e-3, abs=1e-6)
        rmse = found["evaluation"][name]["predictors"][its_own]["rmse"]["value"]
        assert rmse == pytest.approx(np.sqrt(((predicted - targets) ** 2).mean()))
    table = capsys.readouterr().out
    assert f"tuned, {predictor} *" in table
    assert "original1, 9 test rows; * is what was trained" in table

    call(f"eval/regression.py --regressor {folder} --limit 9 --no-base --output-dir {tmp_path}/alone")
    alone = results(tmp_path / "alone")["evaluation"]
    assert list(alone) == ["tuned"]
    assert alone["tuned"]["predictors"].keys() == found["evaluation"]["tuned"]["predictors"].keys()


def test_a_base_on_its_own_is_zero_shot_and_may_be_sampled(
    call: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it writes by fiat: digits and a word, read as numbers with the default for the word."""
    from reft_math.regression import evaluation

    def write(*args: Any, samples: int = 1, **kwargs: Any) -> list[list[str]]:
        return [["4", "8", "Tom"][:samples] for _ in args[2]]

    monkeypatch.setattr(evaluation, "write_numbers", write)
    call(f"eval/regression.py --limit 6 --samples 3 --default 3 --split validation --output-dir {tmp_path}/run")
    found = results(tmp_path / "run")
    predictors = found["evaluation"]["base"]["predictors"]
    assert list(predictors) == ["rail", "rail_normalised", "mode", "median", "decoded", "rail_sampled"]
    assert predictors["rail_sampled"]["no_number"] == pytest.approx(1 / 3)
    assert predictors["decoded"]["no_number"] == 0
    rows = drawn(load_regression("original1", "validation"), 6)
    errors = np.array([5 - row.target for row in rows])  # (4 + 8 + 3) / 3
    assert predictors["rail_sampled"]["rmse"]["value"] == pytest.approx(np.sqrt((errors**2).mean()))
    base = load_base(RegressorConfig(grid="0:9:1", base_model="arithmetic"))
    by_id = records(tmp_path / "run", "base")
    assert [by_id[row.id]["predictions"]["rail"] for row in rows] == pytest.approx(
        base.predict([row.text for row in rows], batch_size=1), rel=1e-4
    )
    assert found["regressor"]["tune"] == "none"


def test_a_grid_and_a_template_of_ones_own(call: Callable[[str], None], tmp_path: Path) -> None:
    call(f"eval/regression.py --limit 4 --grid 0:9:0.5 --template plain --output-dir {tmp_path}/run")
    config = results(tmp_path / "run")["regressor"]
    assert (config["grid"], config["template"]) == ("0:9:0.5", "plain/1")


def test_real_pairs_of_sentences_get_their_own_grid(
    call: Callable[[str], None], tmp_path: Path, shared_data: Path
) -> None:
    line = f"eval/regression.py --data stsb --prompt paper --data-dir {shared_data} --limit 6"
    call(f"{line} --output-dir {tmp_path}/run")
    found = results(tmp_path / "run")
    assert all(record["text"].endswith("is equal to") for record in records(tmp_path / "run", "base").values())
    assert (found["regressor"]["grid"], found["evaluation"]["base"]["total"]) == ("1:5:1", 6)


def test_a_stopped_run_goes_on_and_ends_as_a_whole_one(
    call: Callable[[str], None], tmp_path: Path, saved: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The records of a kill in the middle of a line, samples and all: the rows that are there are not done again."""
    line = f"eval/regression.py --regressor {saved()} --limit 8 --batch-size 3 --samples 2 --output-dir {tmp_path}/run"
    call(line)
    whole = results(tmp_path / "run")["evaluation"]
    tuned, base = (tmp_path / "run" / "records" / f"{name}.jsonl" for name in ("tuned", "base"))
    before = [path.read_bytes() for path in (tuned, base)]
    lines = before[1].splitlines(keepends=True)
    base.write_bytes(b"".join(lines[:4]) + lines[4][:30])
    asked: list[int] = []
    predictors = Regressor.predictors
    monkeypatch.setattr(
        Regressor, "predictors", lambda self, ids, mask: (asked.append(len(ids)), predictors(self, ids, mask))[1]
    )
    call(f"{line} --resume")
    assert results(tmp_path / "run")["evaluation"] == whole
    assert [path.read_bytes() for path in (tuned, base)] == before
    assert asked == [3, 2]  # the batch that was cut, as a whole for its samples' sake, and the last


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--regressor {folder}/nothing", "--regressor names a path, and nothing is there"),
        ("--regressor {folder}", "holds no regressor_config.json"),
        ("--regressor {regressor} --grid 1:5:1", "--grid is for a base on its own; the regressor has one"),
        ("--regressor {regressor} --model arithmetic", "--model is for a base on its own; the regressor has one"),
        ("--model no/such/model", "--model names a path, and nothing is there: no/such/model"),
        ("--data nosuch", 'unknown data set "nosuch": expected one of stsb, stsb:paper'),
        ("--data {folder}/own.csv", "rows of one's own need a grid that reaches their targets; pass --grid"),
        ("--grid 1:5:0.3", "in whole steps of a positive resolution; got 1 to 5 by 0.3"),
        ("--template letter", "template must be auto or one of"),
        ("--split train", "argument --split: invalid choice: 'train'"),
        ("--limit 0", "--limit must be at least 2; got 0"),
        ("--samples -1", "--samples must be 0 or more; got -1"),
        ("--samples 2 --temperature 0", "--temperature must be at least 1e-6 and finite"),
        ("--limit 1", "--limit must be at least 2; got 1"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_and_nothing_is_written(
    refused: Callable[[str, str], str],
    tmp_path: Path,
    saved: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    message: str,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "own.csv").write_text("text,target\n" + "".join(f"{n} apples,{n}\n" for n in range(20)))
    regressor = saved() if "{regressor}" in arguments else ""
    refused(
        f"eval/regression.py {arguments.format(folder=tmp_path, regressor=regressor)} --output-dir {tmp_path}/run",
        message,
    )
    assert not (tmp_path / "run").exists()
