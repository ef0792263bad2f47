"""lm-eval as the judge, on local tasks with the embedded model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.__main__
import lm_eval.tasks
import pytest
import torch

from interventions import PrefixReftConfig, get_prefix_reft_model
from reft_math.data.arithmetic import EMBEDDED_FOLDER
from reft_math.data.registry import held_out_problems
from reft_math.files.records import RecordFile
from reft_math.models import load_model
from reft_math.scoring.lm_eval import ReftMathLM

WRITTEN = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: PROBLEMS}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: [], do_sample: false, max_gen_toks: 80}
filter_list:
  - name: last-number
    filter: [{function: regex, regex_pattern: "(-?[0-9]+)", group_select: -1}, {function: take_first}]
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
metadata: {version: 2.0}
"""
CHOSEN = """
task: choices
dataset_path: json
dataset_kwargs: {data_files: {test: PROBLEMS}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["Let us go step by step.", "The answer is"]
doc_to_target: 0
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0}
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task to write answers in and one to choose them in, on the problems of eval/arithmetic.py."""
    folder = tmp_path_factory.mktemp("tasks")
    problems = [
        {"question": each.question, "answer": each.answer} for each in held_out_problems("arithmetic", None)[1][:50]
    ]
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    (folder / "sums.yaml").write_text(WRITTEN.replace("PROBLEMS", str(path)))
    (folder / "choices.yaml").write_text(CHOSEN.replace("PROBLEMS", str(path)))
    return folder


@pytest.fixture(autouse=True)
def _no_other_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's own task files, some ten thousand, take seconds to list; its log would outlive a test's output."""
    monkeypatch.setattr(lm_eval.__main__, "setup_logging", lambda: None)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", partial(lm_eval.tasks.TaskManager, include_defaults=False))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An adapter that changes what is written, and whose divergence closes a gate of 0.02 nats on the way."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    reft_model = get_prefix_reft_model(load_model("arithmetic"), PrefixReftConfig(gate="kl:0.02", template="chat/1"))
    for bias in reft_model.biases().values():
        torch.nn.init.normal_(bias, std=2.0)
    reft_model.save_pretrained(folder)
    return str(folder)


def results(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("results_*.json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def samples(folder: Path, task: str = "sums") -> list[dict[str, Any]]:
    (path,) = folder.glob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("gate", ["off", "tokens:4", "kl:0.02", "kl:1,min=2"])
def test_answers_and_accuracy_are_those_of_our_own_command(
    call: Callable[[str], None], tmp_path: Path, tasks: Path, adapter: str, gate: str
) -> None:
    line = f"--adapter {adapter} --gate {gate}"
    call(f"eval/arithmetic.py {line} --batch-size 16 --limit 50 --output-dir {tmp_path}/own")
    call(
        f"eval/harness.py {line} --batch_size 16 --tasks sums --include_path {tasks} --apply_chat_template"
        f" --log_samples --output_path {tmp_path}/judge/results.json"
    )
    own = RecordFile(tmp_path / "own" / "records" / "adapter.jsonl").done.values()
    judged = {row["doc"]["question"]: row for row in samples(tmp_path / "judge")}
    assert {question: row["resps"] for question, row in judged.items()} == {
        row["question"]: [[row["completion"]]] for row in own
    }
    assert all(judged[row["question"]]["exact_match"] == float(row["flexible"]) for row in own)
    found = results(tmp_path / "judge")
    accuracy = json.loads((tmp_path / "own" / "results.json").read_text())["evaluation"]["adapter"]["accuracy"]
    assert found["results"]["sums"]["exact_match,last-number"] == accuracy
    assert (found["config"]["gate"], found["config"]["adapter_template"]) == (gate, "chat/1")


def test_choices_are_made_under_the_gate_and_python_reads_the_same(
    call: Callable[[str], None], tmp_path: Path, tasks: Path, adapter: str
) -> None:
    common = f"eval/harness.py --tasks choices --include_path {tasks} --apply_chat_template --batch_size 16"
    call(f"{common} --adapter {adapter} --gate kl:1,min=4 --output_path {tmp_path}/adapter/results.json")
    call(f"{common} --output_path {tmp_path}/base/results.json")
    judge = partial(
        lm_eval.simple_evaluate,
        tasks=["choices"],
        task_manager=lm_eval.tasks.TaskManager(include_path=str(tasks)),
        apply_chat_template=True,
        batch_size=16,
    )
    python = {
        "adapter": judge(model="reft_math", model_args={"adapter": adapter, "gate": "kl:1,min=4"}),
        "base": judge(model="hf", model_args={"pretrained": str(EMBEDDED_FOLDER)}, device="cpu"),
    }
    for name, found in python.items():
        assert results(tmp_path / name)["results"] == found["results"]
    first = [found["samples"]["choices"][0]["resps"] for found in python.values()]
    assert first[0] != first[1]
    assert python["adapter"]["config"]["gate"] == "kl:1,min=4"


def test_a_stopped_run_goes_on_from_the_answers_it_has(
    call: Callable[[str], None], tmp_path: Path, tasks: Path, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = (
        f"eval/harness.py --adapter {adapter} --tasks sums,choices --include_path {tasks} --apply_chat_template"
        f" --limit 12 --batch_size 4 --output_path {tmp_path}/run/results.json --use_cache {tmp_path}/run/answers"
    )
    generate, batches = ReftMathLM._model_generate, []

    def stop_at_the_third(self: ReftMathLM, context: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        batches.append(len(context))
        if len(batches) == 3:
            raise KeyboardInterrupt
        return generate(self, context, *args, **kwargs)

    monkeypatch.setattr(ReftMathLM, "_model_generate", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        call(line)
    call(line)
    assert batches == [4, 4, 4, 4]
    call(line.replace("/run/", "/whole/"))
    found = [results(tmp_path / name)["results"] for name in ("run", "whole")]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--tasks sums,other --include_path {tasks}", "lm-eval: Tasks not found: other"),
        ("--tasks sums --include_path {tasks} --gate kl:1", "--gate kl:1 opens an adapter's interventions"),
        ("--tasks sums --include_path {tasks} --batch_size auto", "batch_size must be a whole number of at least 1"),
        ("--tasks sums --dtype float64", "--dtype"),
    ],
)
def test_mistakes_are_told_in_a_line(
    call: Callable[[str], None], tasks: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    with pytest.raises(SystemExit):
        call(f"eval/harness.py {arguments.format(tasks=tasks)}")
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in error


def test_without_lm_eval_the_extra_is_named(
    call: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    with pytest.raises(SystemExit):
        call("eval/harness.py --tasks gsm8k")
    assert "uv sync --extra harness" in capsys.readouterr().err


def test_lm_evals_math_tasks_find_the_versions_of_sympy_and_antlr_that_they_insist_on() -> None:
    from lm_eval.tasks.minerva_math.utils import is_equiv

    assert is_equiv(r"\frac{1}{2}", "0.5")
    assert not is_equiv(r"\frac{1}{2}", "0.6")
