"""Truth probes of the embedded model, and what adapters change of what they say."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import reft_math.experiments.faithfulness as module
from interventions import PrefixReftConfig, PrefixReftModel, get_prefix_reft_model
from reft_math.files.records import RecordFile
from reft_math.models import load_model, load_tokenizer
from reft_math.probes.truth import fit_truth_probe

SETTINGS = "--statements results --limit 24 --batch-size 30"


@pytest.fixture
def make_adapter(tmp_path: Path) -> Callable[..., Path]:
    """``make_adapter(name, strength)``: RED moved at random; untouched, it changes nothing."""

    def make(name: str, strength: float, **config: Any) -> Path:
        reft_model = get_prefix_reft_model(
            load_model("arithmetic"),
            PrefixReftConfig(**{"gate": "kl:1,min=1", "template": "chat/1", "k": 20, **config}),
        )
        torch.manual_seed(len(name))
        for values in reft_model.biases().values():
            values.data += strength * torch.randn_like(values)
        reft_model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def records(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    return RecordFile(folder / "records" / f"{name}.jsonl").done


def test_a_base_whose_states_are_nan_is_not_probed(
    refused: Callable[[str, str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model("arithmetic")
    model.model.layers[1].mlp.down_proj.weight.data[0] = torch.nan
    monkeypatch.setattr("reft_math.scoring.context.load_model", lambda *_, **__: model)
    refused(
        f"eval/faithfulness.py --limit 12 --output-dir {tmp_path}/run",
        "error: hidden states must be finite; those for 'arithmetic/test/",
    )


def test_tables_are_what_the_records_say_and_the_records_what_the_model_says(
    call: Callable[[str], None], tmp_path: Path, make_adapter: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    folder, adapter, reft = tmp_path / "run", make_adapter("adapter", 1 / 64), make_adapter("reft", 0.8 / 64)
    call(f"eval/faithfulness.py --adapter {adapter} --reft {reft} {SETTINGS} --output-dir {folder}")
    assert "0 of 24 problems left out" in capfd.readouterr().out
    files = {
        "base": "base",
        "always on": "always-on",
        "prefix, tokens:20": "prefix",
        "gated, kl:1,min=1": "gated",
        "ReFT, always on": "reft",
    }
    found = {source: records(folder, f"scores-{file}") for source, file in files.items()}
    probe_set = records(folder, "probe_set")
    held_out = {record["problem"] for record in found["base"].values()}
    assert (len(probe_set), len(held_out)) == (24, 6)

    # Records: the probes' formula at the hidden states that transformers itself gives out, in float64.
    model, tokenizer = load_model("arithmetic").double(), load_tokenizer("arithmetic")
    reft_model = PrefixReftModel.from_pretrained(adapter, model).eval()
    probes = [load_file(folder / "probes" / f"layer-{layer}.safetensors") for layer in range(4)]
    opened = set()
    for name, base in found["base"].items():
        row = probe_set[base["problem"]]
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": row["question"]}], return_dict=False)
        for index, kind in enumerate(("true", "false")):
            answer = row["correct_answers" if kind == "true" else "incorrect_answers"][base["position"]]
            token_ids = tokenizer.encode(answer, add_special_tokens=False)
            odds = {}
            for source, forward in (("base", model), ("always on", reft_model)):
                output = forward(input_ids=torch.tensor([prompt + token_ids]), output_hidden_states=True)
                for layer, state in enumerate(output.hidden_states[1:4]):  # the last is normed already
                    weight, intercept = (probes[layer][f"residual.truth.{part}"] for part in ("weight", "intercept"))
                    odds[source, layer] = float(state[0, -1].detach().numpy() @ weight + intercept)
                    assert found[source][name][kind][layer][0] == pytest.approx(odds[source, layer], abs=1e-4)
            assert found["prefix, tokens:20"][name]["open"][index] == (len(token_ids) < 20)
            for gated in ("prefix, tokens:20", "gated, kl:1,min=1"):
                is_open = found[gated][name]["open"][index]
                opened.add((gated, is_open))
                same_as = "always on" if is_open else "base"
                assert found[gated][name][kind] == found[same_as][name][kind]
    assert len(opened) == 4, "each gate is open after some texts and closed after others"
    assert found["ReFT, always on"] != found["always on"] != found["base"]

    # Probes: fitted on the other questions alone.
    heads = {key.split(".")[0] for key in probes[3]}
    assert heads == {"residual", "0", "1", "2", "3"}
    rows = table(folder, "probes")
    assert len(rows) == 4 * 5
    for row in rows:
        column = 0 if row["head"] == "residual" else 1 + int(row["head"])
        right: dict[str, list[bool]] = {}
        for record in found["base"].values():
            odds_of = {kind: record[kind][int(row["layer"])][column] for kind in ("true", "false")}
            right.setdefault(record["problem"], []).extend((odds_of["true"] > 0, odds_of["false"] <= 0))
        assert float(row["accuracy"]) == pytest.approx(np.mean([np.mean(values) for values in right.values()]))
        assert int(row["texts"]) == sum(map(len, right.values()))

    # Scores: means over questions.
    rows = table(folder, "scores")
    for row in rows:
        column = 0 if row["head"] == "residual" else 1 + int(row["head"])
        of_question: dict[str, list[tuple[float, float]]] = {}
        for name, record in found[row["source"]].items():
            if record["open"][0] == record["open"][1] and row["position"] in ("all", str(record["position"])):
                mine, theirs = (
                    each["true"][int(row["layer"])][column] - each["false"][int(row["layer"])][column]
                    for each in (record, found["base"][name])
                )
                of_question.setdefault(record["problem"], []).append((mine, mine - theirs))
        score, delta = np.mean([np.mean(values, axis=0) for values in of_question.values()], axis=0)
        assert float(row["score"]) == pytest.approx(score)
        assert float(row["delta"]) == pytest.approx(delta, abs=1e-12)
        assert int(row["questions"]) == len(of_question)
        assert int(row["pairs"]) + int(row["mixed"]) >= int(row["questions"])
    assert {row["source"] for row in rows} == set(files)
    assert {row["position"] for row in rows if row["head"] == "residual"} == {"all", "0", "1", "2", "3", "4"}

    results = json.loads((folder / "results.json").read_text())
    assert results["reft"]["k"] == 20
    assert [row["head"] for row in results["probes"]] == ["residual"] * 4
    for name in ("heads", "positions"):
        for ending in ("png", "svg"):
            assert (folder / f"{name}.{ending}").stat().st_size > 1000


def test_an_adapter_of_zeros_changes_nothing_and_a_stopped_run_goes_on(
    call: Callable[[str], None], tmp_path: Path, make_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, whole, zero = tmp_path / "run", tmp_path / "whole", make_adapter("zero", 0.0)
    line = f"eval/faithfulness.py --adapter {zero} --handoff keep --limit 12 --batch-size 30 --output-dir"
    call(f"{line} {whole}")
    rows = table(whole, "scores")
    assert {row["source"] for row in rows} == {"base", "always on", "prefix, tokens:20", "gated, kl:1,min=1"}
    assert {float(row[name]) for row in rows for name in ("delta", "delta_low", "delta_high") if row[name]} == {0.0}

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "leave_process_group", stop)
        with pytest.raises(KeyboardInterrupt):
            call(f"{line} {folder}")
    path = folder / "records" / "scores-gated.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + b'{"id": "torn')
    monkeypatch.setattr("reft_math.probes.truth.fit_truth_probe", stop)
    monkeypatch.setattr("reft_math.probes.truth.save_probes", stop)
    call(f"{line} {folder} --resume")
    for name in ("probes.csv", "scores.csv", "records/scores-gated.jsonl", "records/scores-base.jsonl"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_a_base_alone_has_probes_and_states_answers_where_there_are_no_solutions(
    call: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the questions that probes are held to are not among those they are fitted on."""
    data, folder = tmp_path / "data", tmp_path / "run"
    (data / "mawps").mkdir(parents=True)
    rows = [
        {"instruction": f"What is {number} and 3?", "input": "", "output": "", "answer": str(number + 3)}
        for number in range(20, 50)
    ]
    (data / "mawps" / "test.json").write_text(json.dumps(rows))
    fitted: set[str] = set()

    def remember(hidden: Any, is_true: Any, questions: Any) -> Any:
        fitted.update(questions)
        return fit_truth_probe(hidden, is_true, questions)

    monkeypatch.setattr("reft_math.probes.truth.fit_truth_probe", remember)
    call(f"eval/faithfulness.py --statements results --dataset mawps --data-dir {data} --output-dir {folder}")
    assert "0 of 30 problems left out" in capfd.readouterr().out
    first, *_ = records(folder, "probe_set").values()
    assert first["correct_answers"] == ["The answer is 23."]
    assert first["incorrect_answers"] != first["correct_answers"]
    assert {row["source"] for row in table(folder, "scores")} == {"base"}
    scored = {record["problem"] for record in records(folder, "scores-base").values()}
    assert (len(fitted), len(scored)) == (22, 8)
    assert not fitted & scored


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--adapter {narrow}", "this one is for ffn_up of width 99 (base arithmetic), the model's is 384"),
        ("--adapter {adapter} --reft {narrow}", "this one is for ffn_up of width 99 (base arithmetic), the model's"),
        ("--adapter {adapter} --reft {plain}", "it needs the same base and prompt template"),
        ("--reft {adapter}", "--reft is shown beside an adapter; pass --adapter too"),
        ("--adapter {adapter} --gate prompt", "gate prompt draws no tokens with interventions"),
        ("--limit 7", "truth probes need at least 8 problems that state a number"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    refused: Callable[[str, str], str],
    tmp_path: Path,
    make_adapter: Callable[..., Path],
    line: str,
    message: str,
) -> None:
    folders = {name: make_adapter(name, 0.5, base_model="arithmetic") for name in ("adapter", "narrow")}
    folders["plain"] = make_adapter("plain", 0.5, base_model="arithmetic", template="plain/1")
    config = json.loads((folders["narrow"] / "reft_config.json").read_text())
    (folders["narrow"] / "reft_config.json").write_text(json.dumps({**config, "width": 99}))
    refused(f"eval/faithfulness.py {line.format(**folders)} --output-dir {tmp_path}/run", message)
    assert not (tmp_path / "run").exists()
