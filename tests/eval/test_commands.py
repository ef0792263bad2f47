"""The evaluation commands in this process: on the embedded world, and on the real files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interventions import PrefixReftConfig, PrefixReftModel, get_prefix_reft_model
from reft_math.files.records import RecordFile
from reft_math.models import load_model


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture
def null_adapter(tmp_path: Path) -> str:
    """An adapter that changes nothing."""
    folder = tmp_path / "adapter"
    get_prefix_reft_model(
        load_model("arithmetic"), PrefixReftConfig(gate="tokens:3", template="chat/1")
    ).save_pretrained(folder)
    return str(folder)


def test_an_adapter_of_zeros_is_the_base_under_every_gate(
    call: Callable[[str], None], tmp_path: Path, null_adapter: str
) -> None:
    call(f"eval/arithmetic.py --limit 24 --batch-size 10 --output-dir {tmp_path}/base")
    base = RecordFile(tmp_path / "base" / "records" / "base.jsonl").done
    for gate in ("", "--gate off", "--gate always", "--gate tokens:7", "--gate kl:0.5", "--gate kl:2 --handoff keep"):
        folder = tmp_path / f"run{gate.replace(' ', '')}"
        call(f"eval/arithmetic.py --limit 24 --batch-size 10 --adapter {null_adapter} {gate} --output-dir {folder}")
        records = RecordFile(folder / "records" / "adapter.jsonl").done
        assert {name: {key: row[key] for key in base[name]} for name, row in records.items()} == base
    assert list(results(tmp_path / "run")["evaluation"]) == ["adapter"]


def test_a_careful_start_is_part_of_the_completion(call: Callable[[str], None], tmp_path: Path) -> None:
    call(f"eval/arithmetic.py --limit 10 --opener stepwise --output-dir {tmp_path}/run")
    for record in RecordFile(tmp_path / "run" / "records" / "base.jsonl").done.values():
        assert record["completion"].startswith("Let us go step by step.\n")


def test_a_stopped_run_goes_on_and_ends_as_a_whole_one(call: Callable[[str], None], tmp_path: Path) -> None:
    """The records of a kill in the middle of a line: the torn row is done again, no other is."""
    call(f"eval/arithmetic.py --limit 12 --batch-size 3 --output-dir {tmp_path}/run")
    path = tmp_path / "run" / "records" / "base.jsonl"
    whole, summary = path.read_bytes(), results(tmp_path / "run")["evaluation"]
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:6]) + lines[6][:20])
    call(f"eval/arithmetic.py --limit 12 --batch-size 3 --output-dir {tmp_path}/run --resume")
    assert path.read_bytes() == whole
    assert results(tmp_path / "run")["evaluation"]["base"] == {**summary["base"], "seconds_per_answer": None}


def test_a_run_is_not_resumed_with_other_parameters(
    call: Callable[[str], None], refused: Callable[[str, str], str], tmp_path: Path, null_adapter: str
) -> None:
    line = f"eval/arithmetic.py --limit 2 --max-new-tokens 2 --adapter {null_adapter} --output-dir {tmp_path}/run"
    call(line)
    call(f"{line} --resume")
    assert results(tmp_path / "run")["parameters"].startswith("SHA-256 `")
    reft_model = PrefixReftModel.from_pretrained(null_adapter, load_model("arithmetic"))
    next(iter(reft_model.biases().values())).data += 1
    reft_model.save_pretrained(null_adapter)
    refused(f"{line} --resume", "those of adapter have changed since: put them back")


@pytest.mark.parametrize(("script", "total"), [("eval/gsm8k.py", 1319), ("eval/math500.py", 500)])
def test_reference_solutions_of_the_real_files_score_as_correct_and_the_embedded_model_near_zero(
    call: Callable[[str], None],
    tmp_path: Path,
    shared_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    total: int,
) -> None:
    """First the command as it is on a few problems; then with the reference solutions in the model's place on all."""
    call(f"{script} --data-dir {shared_data} --limit 6 --max-new-tokens 20 --output-dir {tmp_path}/model")
    summary = results(tmp_path / "model")["evaluation"]["base"]
    assert (summary["total"], summary["correct"]) == (6, 0)

    from reft_math.data.registry import load_problems
    from reft_math.scoring import context as commands

    problems = load_problems(Path(script).stem, "test", data_dir=str(shared_data))
    solutions = {problem.question: problem.solution for problem in problems}

    def reference(questions: list[str], *_: object, **__: object) -> list[dict[str, Any]]:
        return [{"completion": solutions[question], "num_tokens": 1, "finished": True} for question in questions]

    monkeypatch.setattr(commands, "complete", reference)
    call(f"{script} --data-dir {shared_data} --output-dir {tmp_path}/reference")
    summary = results(tmp_path / "reference")["evaluation"]["base"]
    assert (summary["total"], summary["correct"]) == (total, total)
    if script == "eval/gsm8k.py":
        assert summary["strict"] == total


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--adapter {folder}/nothing", "--adapter names a path, and nothing is there"),
        ("--adapter {folder}", "holds no reft_config.json"),
        ("--gate tokens:3", "opens an adapter's interventions; pass --adapter"),
        ("--adapter {adapter} --gate half", "a gate is 'off', 'always', 'prompt', 'tokens:N' or 'kl:NATS'"),
        ("--handoff keep", "is what follows a gate; pass --adapter, or leave --handoff out"),
        ("--samples 4", "--samples is for sampling; pass --temperature too, such as 0.7"),
        ("--top-p 0.9", "--top-p is for sampling; pass --temperature too"),
        ("--temperature 0", "--temperature must be at least 1e-6 and finite (without it decoding is greedy); got 0"),
        ("--temperature inf", "--temperature must be at least 1e-6 and finite"),
        ("--adapter {adapter} --gate always --engine http://localhost:1/v1", "gate always never hands over"),
        ("--engine http://me:secret@localhost:1/v1", "put the key in OPENAI_API_KEY, not in the address"),
        ("--engine http://localhost:1/v1 --handoff keep", "goes on as the base would; leave --handoff keep out"),
        ("--engine-adapter red --adapter {adapter}", "names --adapter's counterpart on --engine; pass both"),
        ("--limit 0", "--limit must be at least 1; got 0"),
        ("--model {folder}", "must be 'arithmetic', a folder with a transformers checkpoint"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_and_nothing_is_written(
    refused: Callable[[str, str], str],
    tmp_path: Path,
    null_adapter: str,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    message: str,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arguments = arguments.format(folder=tmp_path, adapter=null_adapter)
    refused(f"eval/arithmetic.py {arguments} --output-dir {tmp_path}/run", message)
    assert not (tmp_path / "run").exists()


def test_an_adapter_for_another_models_width_is_refused(
    call: Callable[[str], None], tmp_path: Path, null_adapter: str, capfd: pytest.CaptureFixture[str]
) -> None:
    config = Path(null_adapter) / "reft_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "width": 14336}))
    with pytest.raises(SystemExit):
        call(f"eval/arithmetic.py --adapter {null_adapter} --output-dir {tmp_path}/run")
    assert "this one is for ffn_up of width 14336" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
