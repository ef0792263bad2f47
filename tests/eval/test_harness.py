"""lm-eval as the judge, on local tasks with the embedded model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.tasks
import pytest
import torch

from interventions import PrefixReftConfig, get_prefix_reft_model
from interventions.harness import ReftMathLM
from reft_math.arithmetic.problems import arithmetic_problems
from reft_math.data.fingerprint import digest
from reft_math.data.registry import held_out_problems
from reft_math.errors import UserError
from reft_math.harness import load_tasks, plain
from reft_math.models import EMBEDDED_FOLDER, load_model, load_tokenizer
from reft_math.scoring.records import RecordFile

WRITTEN = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {train: EXAMPLES, test: PROBLEMS}}
fewshot_split: train
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
    written, chosen = WRITTEN, CHOSEN
    for name, problems in (
        ("EXAMPLES", arithmetic_problems("train", 5)),
        ("PROBLEMS", held_out_problems("arithmetic", None)[1][:50]),
    ):
        path = folder / f"{name}.jsonl"
        path.write_text(
            "".join(json.dumps({"question": each.question, "answer": each.answer}) + "\n" for each in problems)
        )
        written, chosen = written.replace(name, str(path)), chosen.replace(name, str(path))
    (folder / "sums.yaml").write_text(written)
    (folder / "choices.yaml").write_text(chosen)
    return folder


@pytest.fixture(autouse=True)
def _no_other_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's own task files, some ten thousand, take seconds to list."""
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
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


def samples(folder: Path, task: str = "sums") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records" / f"{task}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("gate", ["off", "tokens:4", "kl:0.02", "kl:1,min=2"])
def test_answers_and_accuracy_are_those_of_our_own_command(
    call: Callable[[str], None], tmp_path: Path, tasks: Path, adapter: str, gate: str
) -> None:
    line = f"--adapter {adapter} --gate {gate} --batch-size 16"
    call(f"eval/arithmetic.py {line} --limit 50 --output-dir {tmp_path}/own")
    call(
        f"eval/harness.py {line} --tasks sums --include-path {tasks} --apply-chat-template --log-samples"
        f" --output-dir {tmp_path}/judge"
    )
    own = RecordFile(tmp_path / "own" / "records" / "adapter.jsonl").done.values()
    judged = {row["doc"]["question"]: row for row in samples(tmp_path / "judge")}
    assert {question: row["resps"] for question, row in judged.items()} == {
        row["question"]: [[row["completion"]]] for row in own
    }
    assert all(judged[row["question"]]["exact_match"] == float(row["flexible"]) for row in own)
    found = results(tmp_path / "judge")
    accuracy = results(tmp_path / "own")["evaluation"]["adapter"]["accuracy"]
    assert found["lm_eval"]["results"]["sums"]["exact_match,last-number"] == accuracy
    assert found["lm_eval"]["versions"] == {"sums": 2.0}
    assert found["config"]["gate"] == gate
    assert found["adapter"]["template"] == "chat/1"
    assert len(found["prompts"].pop("sha256")) == 64
    assert found["prompts"] == {"total": 50, "unlike_training": None if gate == "off" else 0, "cut": 0}


def test_choices_are_made_under_the_gate_and_python_reads_the_same(
    call: Callable[[str], None], tmp_path: Path, tasks: Path, adapter: str, capsys: pytest.CaptureFixture[str]
) -> None:
    common = f"eval/harness.py --tasks choices --include-path {tasks} --apply-chat-template --log-samples"
    gated, ungated = f"{common} --adapter {adapter} --gate tokens:4", f"{common} --output-dir {tmp_path}/base"
    call(f"{gated} --output-dir {tmp_path}/adapter")
    call(ungated)
    assert "│ choices │     1.0 │     0 │   none │    acc │" in capsys.readouterr().out
    judge = partial(
        lm_eval.simple_evaluate,
        tasks=["choices"],
        task_manager=lm_eval.tasks.TaskManager(include_path=str(tasks)),
        apply_chat_template=True,
        batch_size=16,
    )
    python = {
        "adapter": judge(
            model="reft_math", model_args={"adapter": adapter, "gate": "tokens:4"}, device="cpu", max_batch_size=8
        ),
        "base": judge(model="hf", model_args={"pretrained": str(EMBEDDED_FOLDER)}, device="cpu"),
    }
    for name, found in python.items():
        assert results(tmp_path / name)["lm_eval"]["results"] == found["results"]
        asked = sorted(found["samples"]["choices"], key=lambda row: row["doc_id"])
        assert [row["resps"] for row in samples(tmp_path / name, "choices")] == plain([row["resps"] for row in asked])
    counts = [results(tmp_path / name)["prompts"]["unlike_training"] for name in python]
    assert counts == [0, None]
    first = [found["samples"]["choices"][0]["resps"] for found in python.values()]
    assert first[0] != first[1]
    assert python["adapter"]["config"]["gate"] == "tokens:4"


def test_a_stopped_run_goes_on_from_the_answers_it_has(
    call: Callable[[str], None], tmp_path: Path, tasks: Path, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = (
        f"eval/harness.py --adapter {adapter} --tasks sums,choices --include-path {tasks} --apply-chat-template"
        f" --limit 12 --batch-size 4 --output-dir {tmp_path}/run"
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
    call(f"{line} --resume")
    assert batches == [4, 4, 4, 4]
    call(line.replace("/run", "/whole"))
    found = [results(tmp_path / name)["lm_eval"]["results"] for name in ("run", "whole")]
    assert found[0] == found[1]


def test_repeated_samples_are_drawn_each_for_itself_resumed_or_not(
    call: Callable[[str], None], tmp_path: Path, tasks: Path
) -> None:
    """The task does not say ``do_sample``: its temperature does."""
    text = (tasks / "sums.yaml").read_text().replace("do_sample: false", "temperature: 2.0").replace("sums", "drawn")
    (tmp_path / "drawn.yaml").write_text(f"{text}repeats: 3\n".replace(", {function: take_first}", ""))
    line = (
        f"eval/harness.py --tasks drawn --include-path {tmp_path} --limit 2 --log-samples --output-dir {tmp_path}/run"
    )
    for more in ("", " --resume"):
        call(line + more)
        for row in samples(tmp_path / "run", "drawn"):
            assert len(set(row["resps"][0])) == 3


def test_what_shapes_a_prompt_is_handed_on_and_noted(
    call: Callable[[str], None], tmp_path: Path, tasks: Path, adapter: str
) -> None:
    with pytest.warns(UserWarning, match="3 of 3 prompts are not framed as the adapter's training prompts were"):
        call(
            f"eval/harness.py --adapter {adapter} --tasks sums --include-path {tasks} --apply-chat-template --limit 3"
            " --num-fewshot 1 --system-instruction 'Be brief.' --gen-kwargs max_gen_toks=5 --seed 3 --log-samples"
            f" --max-length 40 --output-dir {tmp_path}/run"
        )
    found = results(tmp_path / "run")
    prompts = [row["arguments"][0][:1] for row in samples(tmp_path / "run")]
    assert found["prompts"].pop("sha256") == digest(prompts)
    assert found["prompts"] == {"total": 3, "unlike_training": 3, "cut": 3}
    assert {found["lm_eval"]["config"][f"{name}_seed"] for name in ("random", "numpy", "torch", "fewshot")} == {3}
    tokenizer = load_tokenizer("arithmetic")
    for row in samples(tmp_path / "run"):
        prompt = row["arguments"][0][0]
        assert prompt.startswith("<bos>Be brief.")
        assert prompt.count("How many") == 2
        assert prompt.endswith(f"{row['doc']['question']}\n")
        assert len(tokenizer.encode(row["resps"][0][0], add_special_tokens=False)) <= 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "--tasks names what to measure"),
        ("--tasks sums", "got sums"),
        ("--tasks sums,other --include-path {tasks}", "got other"),
        ("--tasks sums --include-path no/where", "--include-path must be a folder with task files (.yaml); no/where"),
        ("--tasks sums --include-path {tasks} --limit 0", "--limit must be at least 1; got 0"),
        ("--tasks sums --include-path {tasks} --gate kl:1", "--gate kl:1 opens an adapter's interventions"),
        ("--tasks sums --include-path {tasks} --gen-kwargs cold", "--gen-kwargs holds settings of generate"),
        (
            "--tasks sums --include-path {tasks} --apply-chat-template --model {broken}",
            "--apply-chat-template needs a tokenizer that has one",
        ),
        ("--tasks broken --include-path {broken}", "--tasks must be within reach, data and all; broken:"),
        ("--tasks sums --include-path {tasks} --gen-kwargs max_gen_toks=600", "sums has 600: pass another"),
        ("--tasks sums --include-path {tasks} --gen-kwargs do_sample=True", "sums samples: it needs a temperature"),
        (
            "--tasks sums --include-path {tasks} --gen-kwargs num_beams=2 --adapter {adapter}",
            "a gate goes with greedy decoding and sampling; sums has num_beams=2",
        ),
        (
            "--tasks sums --include-path {tasks} --adapter {generated} --gate prompt",
            "gate 'prompt' is for adapters that act on the prompt",
        ),
    ],
)
def test_mistakes_are_told_in_a_line_and_leave_nothing(
    call: Callable[[str], None],
    tmp_path: Path,
    tasks: Path,
    adapter: str,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    broken, generated = tmp_path / "broken", tmp_path / "generated"
    shutil.copytree(adapter, generated)
    replace(PrefixReftConfig.from_pretrained(adapter), positions="generated").save_pretrained(generated)
    shutil.copytree(EMBEDDED_FOLDER, broken)
    (broken / "chat_template.jinja").unlink()
    (broken / "broken.yaml").write_text(CHOSEN.replace("choices", "broken").replace("PROBLEMS", str(broken / "none")))
    line = arguments.format(tasks=tasks, broken=broken, adapter=adapter, generated=generated)
    with pytest.raises(SystemExit):
        call(f"eval/harness.py {line} --output-dir {tmp_path}/run")
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("task: choices", "task: [choices", "--include-path must hold readable task files; "),
        ("task: choices", "include: none.yaml\ntask: choices", "--include-path must hold readable task files; "),
        (
            "{{question}}",
            "{{question",
            "--tasks must be within reach, data and all; choices: unexpected end of template",
        ),
        ('"question"', '"question', "--tasks must be within reach, data and all; choices: "),
        ("task: choices", "unsafe_code: true\ntask: choices", "must not run code that a model wrote; choices does"),
    ],
)
def test_a_task_that_cannot_be_asked_is_told_in_a_line(tmp_path: Path, before: str, after: str, message: str) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"question": "What is 2+3?", "answer": 5}\n'.replace(before, after))
    (tmp_path / "choices.yaml").write_text(CHOSEN.replace("PROBLEMS", str(problems)).replace(before, after))
    with pytest.raises(UserError, match=re.escape(message)):
        load_tasks(["choices"], str(tmp_path))
