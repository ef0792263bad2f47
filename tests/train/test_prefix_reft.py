"""The main command in this process, small: what it writes, how it goes on, and what it says of a mistake."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyreft
import pytest
import torch
from ranks import ROOT, World, accelerates

from interventions import PrefixReftModel
from interventions.norms import mean_norm
from reft_math.data.arithmetic.tokenizer import build_tokenizer
from reft_math.models import base, load_model, sharding
from reft_math.scoring import gate_choice
from reft_math.training import job
from reft_math.training.checkpoints import newest_whole

SMALL = "--train-size 64 --eval-size 8 --epochs 2 --save-steps 3 --calibration-size 4 --max-new-tokens 12"


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_writes_adapter_records_and_results(
    call: Callable[[str], None], tmp_path: Path, tiny_base: str, capfd: pytest.CaptureFixture[str]
) -> None:
    call(f"train/prefix_reft.py --k 10 --target-norm 0.2 --model {tiny_base} {SMALL} --output-dir {tmp_path}/run")
    out, err = capfd.readouterr()
    assert "{" not in out + err, "no dictionaries of the trainer's"
    assert "training: 100%" in err
    assert "100%" not in out, "bars are no results"
    assert out.splitlines()[-2:] == [f"adapter: {tmp_path}/run/adapter", f"results: {tmp_path}/run/results.json"]
    results = read(tmp_path / "run" / "results.json")
    assert results["config"]["k"] == 10
    assert results["config"]["learning_rate"] == 5e-3
    assert {"torch", "transformers", "pyvene", "pyreft"} <= results["versions"].keys()
    assert results["template"] == "chat/1"
    norm = results["bias_norm"]
    assert norm["target"] == 0.2
    assert norm["target_per_coordinate"] == pytest.approx(0.2 / 48**0.5)
    assert norm["acting_norm"] == pytest.approx(norm["achieved"], rel=1e-4), "in float32"
    assert f"noise floor in float32, the adapter at a thousandth of its size ({results['noise_floor']['rows']}" in out
    assert f"norm={norm['achieved']:.3g}]" in err
    assert norm["achieved"] == norm["trace"]["norm"][-1] <= 0.2 * 1.05
    assert len(norm["trace"]["norm"]) == norm["trace"]["step"][-1] == 2 * 64 // 16
    assert list(results["evaluation"]) == ["base", "prefix", "always_on", "base_given_careful_start"]
    for name, summary in results["evaluation"].items():
        lines = (tmp_path / "run" / "records" / f"{name}.jsonl").read_text().splitlines()
        assert summary["total"] == len(lines) == 8
        assert summary["correct"] == sum(json.loads(line)["correct"] for line in lines)
    assert results["evaluation"]["prefix"]["mcnemar_vs_base"]["p_value"] <= 1

    model = load_model(tiny_base)
    adapter = str(tmp_path / "run" / "adapter")
    ours = PrefixReftModel.from_pretrained(adapter, model)
    assert (ours.prefix_config.k, ours.prefix_config.target_norm) == (10, 0.2)
    assert ours.prefix_config.gate == results["gate"] in results["calibration"]
    tokens = torch.arange(4, 12)[None]
    logits = ours(tokens).logits
    ours.unload()
    stock = pyreft.ReftModel.load(adapter, model)
    assert torch.equal(stock({"input_ids": tokens}, unit_locations={"base": list(range(8))})[1].logits, logits)


@pytest.mark.parametrize(
    ("family", "arguments"),
    [
        ("Phi3", "--site ffn_down"),
        ("GPTNeoX", ""),
        ("OPT", "--site-path model.decoder.layers.{layer}.self_attn.v_proj"),
    ],
)
def test_other_families_train_and_their_adapters_evaluate(
    call: Callable[[str], None],
    tmp_path: Path,
    tiny_model: Callable[..., Any],
    family: str,
    arguments: str,
) -> None:
    tokenizer = build_tokenizer()
    changes = {"word_embed_proj_dim": 32} if family == "OPT" else {}
    model = tiny_model(family, vocab_size=len(tokenizer), max_position_embeddings=256, **changes)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "base")
    short = "--train-size 16 --batch-size 4 --eval-size 2 --epochs 1 --gate tokens:3 --max-new-tokens 8"
    call(f"train/prefix_reft.py --model {tmp_path}/base {short} {arguments} --output-dir {tmp_path}/run")
    config = read(tmp_path / "run" / "adapter" / "reft_config.json")
    assert config["site"] == (arguments.split()[-1] if arguments else "ffn_up")
    assert read(tmp_path / "run" / "results.json")["bias_norm"]["achieved"] > 0
    line = f"eval/arithmetic.py --adapter {tmp_path}/run/adapter --limit 2 --max-new-tokens 8"
    call(f"{line} --output-dir {tmp_path}/evaluation")
    trained, again = (
        [json.loads(row)["completion"] for row in (tmp_path / path).read_text().splitlines()]
        for path in ("run/records/prefix.jsonl", "evaluation/records/adapter.jsonl")
    )
    assert again == trained


def test_the_default_gate_is_the_last_of_the_most_accurate_on_validation_problems(
    call: Callable[[str], None], tmp_path: Path, tiny_base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores by fiat: right from 1 to 4 nats, wrong elsewhere."""
    asked: list[tuple[str, list[str]]] = []
    evaluate = gate_choice.evaluate

    def scored(problems: Any, complete: Any, score: Any, path: Path, name: str, **kwargs: Any) -> Any:
        asked.append((name, [problem.id for problem in problems]))
        nats = float(name.removeprefix("gate kl:").partition(",")[0])
        return [{**row, "correct": 1 <= nats <= 4} for row in evaluate(problems, complete, score, path, name, **kwargs)]

    monkeypatch.setattr(gate_choice, "evaluate", scored)
    call(f"train/prefix_reft.py --model {tiny_base} {SMALL} --output-dir {tmp_path}/run")
    assert [name for name, _ in asked] == [f"gate {gate}" for gate in gate_choice.KL_GATES]
    assert {problem.split("/")[1] for _, problems in asked for problem in problems} == {"validation"}
    assert read(tmp_path / "run" / "adapter" / "reft_config.json")["gate"] == "kl:4,min=1"
    found = read(tmp_path / "run" / "results.json")["calibration"]
    assert [gate["correct"] for gate in found.values()] == [0, 0, 4, 4, 4, 0, 0]


@pytest.mark.parametrize(("arguments", "gate"), [("--gate kl:3", "kl:3"), ("--no-calibrate-gate", "tokens:10")])
def test_a_gate_that_is_given_is_not_calibrated_and_without_problems_nothing_is_evaluated(
    call: Callable[[str], None], tmp_path: Path, tiny_base: str, arguments: str, gate: str
) -> None:
    call(f"train/prefix_reft.py --model {tiny_base} {SMALL} {arguments} --eval-size 0 --output-dir {tmp_path}/run")
    assert read(tmp_path / "run" / "adapter" / "reft_config.json")["gate"] == gate
    assert read(tmp_path / "run" / "results.json")["evaluation"] is None
    assert not (tmp_path / "run" / "calibration").exists()
    assert not (tmp_path / "run" / "records").exists()


@pytest.fixture
def in_peace(call: Callable[[str], None], tiny_base: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A command line without its output folder, and what it leaves where nothing stops it, made once."""
    line = f"train/prefix_reft.py --model {tiny_base} {SMALL} --eval-batch-size 4 --seed 3"
    folder = tmp_path_factory.getbasetemp() / "in-peace"
    if not folder.exists():
        call(f"{line} --output-dir {folder}")
    return line, folder


def test_a_run_stopped_in_evaluation_goes_on_without_training_again(
    call: Callable[[str], None], tmp_path: Path, in_peace: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    line, whole_folder = in_peace
    line += f" --output-dir {tmp_path}/stopped"
    evaluate, calls = job.evaluate, []

    def stop_at_the_second(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(job, "evaluate", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        call(line)
    weights = (tmp_path / "stopped" / "adapter" / "reft_model.safetensors").read_bytes()
    monkeypatch.setattr(job, "evaluate", evaluate)
    monkeypatch.setattr(job.PrefixTrainer, "train", lambda *args, **kwargs: pytest.fail("trained again"))
    call(f"{line} --resume")

    whole, resumed = read(whole_folder / "results.json"), read(tmp_path / "stopped" / "results.json")
    assert resumed["bias_norm"] == whole["bias_norm"]
    for summary in (*whole["evaluation"].values(), *resumed["evaluation"].values()):
        summary.pop("seconds_per_answer")
    assert resumed["evaluation"] == whole["evaluation"]
    assert weights == (whole_folder / "adapter" / "reft_model.safetensors").read_bytes()
    for path in (whole_folder / "records").iterdir():
        assert path.read_text() == (tmp_path / "stopped" / "records" / path.name).read_text()


def test_a_run_stopped_in_training_goes_on_from_its_last_checkpoint(
    call: Callable[[str], None], tmp_path: Path, in_peace: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between two checkpoints, the newest of which the stop has left half written."""
    line, whole_folder = in_peace
    line += f" --output-dir {tmp_path}/stopped"

    def stop(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == 7:
            raise KeyboardInterrupt
        return compute(trainer, *args, **kwargs)

    compute = job.PrefixTrainer.compute_loss
    monkeypatch.setattr(job.PrefixTrainer, "compute_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        call(line)
    monkeypatch.setattr(job.PrefixTrainer, "compute_loss", compute)
    checkpoints = tmp_path / "stopped" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint-3", "checkpoint-6"]
    assert newest_whole(checkpoints) == checkpoints / "checkpoint-6"
    with (checkpoints / "checkpoint-6" / "optimizer.pt").open("r+b") as file:
        file.truncate(1000)
    steps: list[int] = []
    step = job.PrefixTrainer.training_step
    monkeypatch.setattr(
        job.PrefixTrainer, "training_step", lambda self, *args, **kw: (steps.append(1), step(self, *args, **kw))[1]
    )
    call(f"{line} --resume")
    assert len(steps) == 8 - 3
    whole, resumed = (folder / "adapter" / "reft_model.safetensors" for folder in (whole_folder, tmp_path / "stopped"))
    assert whole.read_bytes() == resumed.read_bytes()


def test_a_disk_that_fills_up_in_a_checkpoint_is_one_line_and_the_run_goes_on_from_the_one_before(
    call: Callable[[str], None], tmp_path: Path, tiny_base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"train/prefix_reft.py --model {tiny_base} {SMALL} --output-dir {tmp_path}/run"
    checkpoints = tmp_path / "run" / "checkpoints"
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    step = job.PrefixTrainer.training_step

    def fill_up(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        return step(trainer, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job.PrefixTrainer, "training_step", fill_up)
        try:
            with pytest.raises(SystemExit) as stop:
                call(line)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert stop.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "error: File too large; mend that; to go on, run the same command with --resume"
    assert newest_whole(checkpoints) == checkpoints / "checkpoint-3"
    call(f"{line} --resume")
    assert f"{checkpoints}/checkpoint-6 is damaged" in capsys.readouterr().err
    assert (tmp_path / "run" / "results.json").exists()


def test_a_weight_of_zero_on_numbers_changes_no_bit_and_any_other_has_a_curve(
    call: Callable[[str], None], tmp_path: Path, tiny_base: str
) -> None:
    line = (
        f"train/prefix_reft.py --model {tiny_base} {SMALL} --full-fraction 0.5 --gate tokens:2 --output-dir {tmp_path}"
    )
    call(f"{line}/without")
    call(f"{line}/zero --numeric-weight 0")
    call(f"{line}/some --numeric-weight 0.5 --numeric-objective raft")
    weights = [
        (tmp_path / run / "adapter" / "reft_model.safetensors").read_bytes() for run in ("without", "zero", "some")
    ]
    assert weights[0] == weights[1] != weights[2]
    results = [read(tmp_path / run / "results.json") for run in ("zero", "some")]
    assert results[0]["numbers"] is None
    assert 0 < results[1]["numbers"]["whole_numbers"] < results[1]["numbers"]["number_tokens"]
    traces = [result["bias_norm"]["trace"] for result in results]
    assert "number_loss" not in traces[0]
    assert len(traces[1]["number_loss"]) == len(traces[1]["step"])
    assert min(traces[1]["number_loss"]) > 0
    evaluation = read(tmp_path / "some" / "results.json")["evaluation"]["prefix"]
    assert evaluation["unanswered"] <= evaluation["total"]
    assert evaluation["mean_absolute_error"] >= 0


def test_a_file_too_small_to_choose_a_gate_on_says_so_before_anything_is_written(
    call: Callable[[str], None], refused: Callable[[str, str], str], tmp_path: Path, tiny_base: str
) -> None:
    rows = [json.dumps({"question": f"{n}+1?", "solution": f"#### {n + 1}", "answer": f"{n + 1}"}) for n in range(6)]
    (tmp_path / "own.jsonl").write_text("\n".join(rows))
    line = (
        f"train/prefix_reft.py --model {tiny_base} {SMALL} --dataset {tmp_path}/own.jsonl --output-dir {tmp_path}/run"
    )
    refused(line, "too small to choose a gate on; name one with --gate, such as tokens:10")
    assert not (tmp_path / "run").exists()
    call(f"{line} --gate tokens:10 --max-new-tokens 5")
    assert read(tmp_path / "run" / "results.json")["evaluation"]["prefix"]["total"] == 1


@pytest.mark.parametrize("intervention", ["loreft", "direft"])
def test_ordinary_reft_is_a_full_fraction_of_one(
    call: Callable[[str], None], tmp_path: Path, tiny_base: str, intervention: str
) -> None:
    call(
        f"train/prefix_reft.py --full-fraction 1 --norm-control none --intervention {intervention} --rank 2"
        f" --layers 1 --model {tiny_base} {SMALL} --output-dir {tmp_path}/run"
    )
    results = read(tmp_path / "run" / "results.json")
    assert list(results["evaluation"]) == ["base", "reft", "base_given_careful_start"]
    assert results["trainable_parameters"] == 2 * 32 * 2 + 2
    config = read(tmp_path / "run" / "adapter" / "reft_config.json")
    assert (config["k"], config["target_norm"], config["gate"], config["layers"]) == (None, None, "always", [1])
    assert (config["intervention"], config["site"]) == (intervention, "block")


def test_a_real_data_set_from_a_folder(
    call: Callable[[str], None], tmp_path: Path, tiny_base: str, shared_data: Path
) -> None:
    call(
        f"train/prefix_reft.py --dataset gsm8k --data-dir {shared_data} --model {tiny_base} {SMALL} --max-new-tokens 8"
        f" --template plain --output-dir {tmp_path}/run"
    )
    results = read(tmp_path / "run" / "results.json")
    assert results["config"]["learning_rate"] == 2e-4
    assert results["template"] == "plain/1"
    assert list(results["evaluation"]) == ["base", "prefix", "always_on"]


@pytest.mark.slow
def test_two_processes_train_and_evaluate(tmp_path: Path, tiny_base: str, world: Callable[..., World]) -> None:
    """Half the steps each would need alone, prompts of its own; both evaluate their share, one writes the results."""
    settings = f"{SMALL} --batch-size 4 --positions generated"
    line = f"train/prefix_reft.py --model {tiny_base} {settings} --output-dir {tmp_path}/run"
    run = world(2, line, **accelerates("configs/ddp.yaml"))
    assert run.wait() == 0, run.errors()
    assert sum("prompts are read once" in path.read_text() for path in run.folder.glob("err*")) == 1
    results = read(tmp_path / "run" / "results.json")
    assert len(results["bias_norm"]["trace"]["step"]) == 2 * 64 // (4 * 2)
    assert results["evaluation"]["prefix"]["total"] == 8
    assert not list((tmp_path / "run").rglob("*.shard-*"))


@pytest.mark.slow
def test_a_sharded_base_is_trained_with_and_left_to_other_commands_to_evaluate(tmp_path: Path, tiny_base: str) -> None:
    """As a user starts it: by ``accelerate launch``."""
    line = f"train/prefix_reft.py --model {tiny_base} {SMALL} --batch-size 4 --output-dir {tmp_path}/run"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "configs/fsdp2.yaml"]
    done = subprocess.run(
        [*launcher, "--num_processes", "2", "--main_process_port", "0", *line.split()],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"eval/calibrate_gate.py --adapter {tmp_path}/run/adapter --device-map auto" in done.stdout
    results = read(tmp_path / "run" / "results.json")
    assert len(results["bias_norm"]["trace"]["step"]) == 2 * 64 // (4 * 2)
    assert (results["evaluation"], results["calibration"]) == (None, None)
    base = load_model(tiny_base)
    assert results["model"]["parameters"] == base.num_parameters()
    adapter = PrefixReftModel.from_pretrained(tmp_path / "run" / "adapter", base)
    assert adapter.gate == results["gate"] == "tokens:10"
    assert mean_norm(list(adapter.biases().values())).item() == pytest.approx(results["bias_norm"]["achieved"])


@pytest.mark.parametrize(
    ("environment", "got"),
    [
        ({"FSDP_VERSION": "2"}, "got num_processes 1, fsdp_version 2,"),
        ({"FSDP_VERSION": "1"}, "fsdp_version 1,"),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params True,"),
        ({"FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "fsdp_activation_checkpointing True"),
    ],
)
def test_fsdp_is_as_its_config_has_it(
    call: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environment: dict[str, str],
    got: str,
) -> None:
    for name, value in {"ACCELERATE_USE_FSDP": "true", **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stopped:
        call(f"train/prefix_reft.py --output-dir {tmp_path}/run")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: FSDP is version 2 over several processes, as configs/fsdp2.yaml has it")
    assert got in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train/lora.py", "only train/prefix_reft.py shards its base"),
        ("eval/arithmetic.py", "only train/prefix_reft.py shards its base"),
        ("train/prefix_reft.py --project-number-direction", "--project-number-direction reads the base's activations"),
    ],
)
def test_what_needs_a_whole_base_does_not_run_under_fsdp(
    refused: Callable[[str, str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    message: str,
) -> None:
    monkeypatch.setattr(sharding, "fsdp_requested", lambda: True)
    monkeypatch.setattr(base, "fsdp_requested", lambda: True)
    assert refused(f"{line} --output-dir {tmp_path}/run", message).startswith(f"error: {message}")
    assert not (tmp_path / "run").exists()


MALFORMED = '{"question": "1 + 1?", "answer": "2\\n#### 2"}\n{"question": "1 + 2?"}\n'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model no-such/model", "model 'no-such/model' must be 'arithmetic', a folder"),
        ("--dataset nosuch", 'unknown data set "nosuch": expected one of arithmetic, gsm8k'),
        ("--dataset gsm8k --data-dir {folder}", 'train.jsonl, line 2: field "answer" is missing'),
        ("--dataset svamp --data-dir {folder}", '"svamp" has no train split'),
        ("--k 0", "--k must be at least 1; got 0"),
        ("--k ten", "argument --k"),
        ("--target-norm 0", "--target-norm must be positive; got 0"),
        ("--target-norm -0.54", "--target-norm must be positive; got -0.54"),
        ("--site mlp", "has no site 'mlp'; it has ffn_up, ffn_down"),
        ("--site block --site-path a.{layer}", "--site and --site-path exclude each other; got block and a.{layer}"),
        ("--site-path model.layers.0.mlp", "--site-path must hold {layer} for the layer's number, as in model.layers."),
        (
            "--site-path model.layers.{layer}.up",
            "no module model.layers.0.up; model.layers.0 has self_attn",
        ),
        ("--layers 0-2", "layers must lie in 0-1, the model's decoder layers; got 2"),
        ("--gate tokens:ten", "a gate is 'off', 'always', 'prompt', 'tokens:N' or 'kl:NATS'"),
        ("--positions generated --gate prompt", "gate prompt is for adapters that act on the prompt"),
        ("--template letter", "template must be auto or one of"),
        ("--template chat-thinking", "needs a chat template with a thinking mode, and the tokenizer's has none"),
        ("--intervention loreft --rank 49", "rank must be at most the site's width 32"),
        ("--nosuch 1", "unrecognized arguments: --nosuch 1"),
        ("--seed -1", "--seed must be from 0 to 4294967295; got -1"),
        ("--seed 4294967296", "--seed must be from 0 to 4294967295; got 4294967296"),
        ("--resume --overwrite", "exclude each other"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_and_nothing_is_written(
    refused: Callable[[str, str], str],
    tmp_path: Path,
    tiny_base: str,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    message: str,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "data" / "gsm8k").mkdir(parents=True)
    (tmp_path / "data" / "gsm8k" / "train.jsonl").write_text(MALFORMED)
    arguments = arguments.replace("{folder}", str(tmp_path / "data"))
    refused(f"train/prefix_reft.py --model {tiny_base} {SMALL} --output-dir {tmp_path}/run {arguments}", message)
    assert not (tmp_path / "run").exists()


def test_a_thinking_mode_is_not_trained_on_solutions_without_thoughts(
    call: Callable[[str], None], tmp_path: Path, tiny_base: str, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_base, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").write_text(
        "{{ messages[0].content }}{% if enable_thinking is false %}<think></think>{% endif %}"
    )
    line = f"train/prefix_reft.py --model {tmp_path}/base {SMALL} --output-dir {tmp_path}/run"
    with pytest.raises(SystemExit):
        call(f"{line} --template chat-thinking")
    assert "error: template 'chat-thinking' is trained on solutions that begin with a thought" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_output_folder_in_use_is_left_alone(
    call: Callable[[str], None], tmp_path: Path, tiny_base: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    for extra in ("", "--overwrite"):
        with pytest.raises(SystemExit) as stopped:
            call(f"train/prefix_reft.py --model {tiny_base} {SMALL} --output-dir {tmp_path}/run {extra}")
        assert stopped.value.code == 2
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]
    assert "is in use; pass --resume to go on" in capfd.readouterr().err
