"""``--dry-run``: its counts are the run's, its estimate of memory is what autograd keeps, and it writes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from reft_math.commands.options.prefix import PrefixReftOptions
from reft_math.data.prefix import PrefixCollator
from reft_math.training.dry_run import Trained, interventions_of, memory_parts
from reft_math.training.loss import sequence_cross_entropy
from reft_math.training.memory import Batch, kept_by_linears
from reft_math.training.packing import logits_at
from reft_math.training.prefix_training import prepare

SMALL = "--train-size 24 --eval-size 4 --epochs 2 --max-new-tokens 4"


def kept_bytes(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> int:
    """What autograd keeps of a forward pass with its loss, beside parameters, each storage once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    base = getattr(model, "model", model)
    own |= {parameter.untyped_storage().data_ptr() for parameter in base.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)  # held, so that its address stays its own
        return tensor

    targets = batch["targets"]
    inputs = {name: value for name, value in batch.items() if name not in ("targets", "logits_at")}
    with logits_at(model, batch["logits_at"]), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model(**inputs, use_cache=False)
        sequence_cross_entropy(outputs.logits, targets).mean()
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["red", "bias", "loreft", "lora", "bfloat16"])
def test_activations_are_estimated_within_a_tenth(kind: str, checkpointing: bool) -> None:
    """Against a count on the embedded model; the log-probabilities are the estimate's logits in float32."""
    dtype = "bfloat16" if kind == "bfloat16" else "auto"
    intervention = kind if kind in ("bias", "loreft") else "red"
    options = PrefixReftOptions(
        train_size=16, intervention=intervention, dtype=dtype, gradient_checkpointing=checkpointing
    )
    prefix = prepare(options)
    model: Any = prefix.model
    trained = interventions_of(prefix.model)
    if kind == "lora":
        base = prefix.model.unload()
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear"))
        trained = Trained(base, model, 4, kept_by_linears(model, base.dtype))
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch = PrefixCollator(0, None if kind == "lora" else "all")(prefix.dataset.rows)
    rows, length = batch["input_ids"].shape
    estimate = memory_parts(prefix.options, trained, Batch(rows, length, 10))["activations"]
    assert estimate + 4 * rows * 10 * 86 == pytest.approx(kept_bytes(model, batch), rel=0.1)


# --- the commands ------------------------------------------------------------------------------------------------


@pytest.fixture
def weightless(tiny_base: str, tmp_path: Path) -> str:
    """Configuration and tokenizer of a model whose weights are not there."""
    folder = tmp_path / "weightless"
    shutil.copytree(tiny_base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return str(folder)


def told(text: str) -> dict[str, str]:
    """Values by name of the report's tables with two columns."""
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line[:1] == "│"]
    return {row[0]: row[1] for row in rows if len(row) == 2}


@pytest.mark.parametrize(
    "line",
    [
        "train/prefix_reft.py --k 4 --gate tokens:4",
        "train/prefix_reft.py --intervention loreft --full-fraction 1 --norm-control none --accumulation 2",
        "train/prefix_reft.py --layers 1 --site-path model.layers.{layer}.mlp",
        "train/prefix_reft.py --intervention bias --site block --project-number-direction",
        "train/lora.py --rank 2 --target-modules q_proj,up_proj",
    ],
)
def test_its_counts_are_those_of_the_run_and_it_needs_no_weights_and_writes_nothing(
    call: Callable[[str], None],
    tmp_path: Path,
    tiny_base: str,
    weightless: str,
    capsys: pytest.CaptureFixture[str],
    line: str,
) -> None:
    call(f"{line} {SMALL} --model {weightless} --output-dir {tmp_path}/run --dry-run")
    found = told(capsys.readouterr().out)
    assert not (tmp_path / "run").exists()
    call(f"{line} {SMALL} --model {tiny_base} --output-dir {tmp_path}/run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert found["trained parameters"] == f"{results['trainable_parameters']:,}"
    assert found["rows"] == f"{results['train_rows']} train, 200 validation, 4 test"
    (state,) = (tmp_path / "run" / "checkpoints").glob("*/trainer_state.json")
    assert found["optimiser steps"] == str(json.loads(state.read_text())["max_steps"])
    assert found["--max-new-tokens"] == "4"
    assert found["--learning-rate"] == str(results["config"]["learning_rate"])


@pytest.mark.parametrize("tune", ["red", "lora", "full"])
def test_regression_too(
    call: Callable[[str], None], tmp_path: Path, weightless: str, capsys: pytest.CaptureFixture[str], tune: str
) -> None:
    call(f"train/raft.py --tune {tune} --model {weightless} --output-dir {tmp_path}/run --dry-run")
    found = told(capsys.readouterr().out)
    assert found["rows"] == "10,000 train, 1,000 validation, 1,000 test"
    base = 86 * 32 * 2 + 2 * (4 * 32 * 32 + 3 * 32 * 48 + 2 * 32) + 32
    per_layer = {"red": 2 * 48, "lora": 8 * (4 * (32 + 32) + 3 * (32 + 48)), "full": 0}
    assert found["trained parameters"] == f"{2 * per_layer[tune] or base:,}"
    assert not (tmp_path / "run").exists()


def test_trials_are_counted_and_shown_by_the_largest(
    call: Callable[[str], None], tmp_path: Path, weightless: str, capsys: pytest.CaptureFixture[str]
) -> None:
    call(f"eval/ablation.py --seeds 2 {SMALL} --model {weightless} --output-dir {tmp_path}/run --dry-run")
    out = capsys.readouterr().out
    assert told(out)["trials, each of at most"] == "8"
    cells = {line.split("│")[1].strip(): line.split("│")[2:] for line in out.splitlines() if line.count("│") == 5}
    assert cells["trained of the solution"] == cells["whole solution"]
    assert not (tmp_path / "run").exists()


def test_what_is_in_the_folder_is_told_and_then_what_the_run_would_say_of_it(
    call: Callable[[str], None], tmp_path: Path, tiny_base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"train/lora.py {SMALL} --model {tiny_base} --output-dir {tmp_path}/run"

    def what_is_in_it(*more: str, refused: str | None = None) -> str:
        if refused is None:
            call(" ".join([line, "--dry-run", *more]))
        else:
            with pytest.raises(SystemExit):
                call(" ".join([line, "--dry-run", *more]))
        out, err = capsys.readouterr()
        assert refused is None or refused in err
        return told(out)["what is in it"]

    assert what_is_in_it() == "nothing yet"
    call(line)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert what_is_in_it(refused="is in use; pass --resume") == "something already"
    assert what_is_in_it("--overwrite") == "a run that would be deleted"
    assert what_is_in_it("--resume") == "a trained run that would be evaluated"
    assert what_is_in_it("--resume --rank 3", refused="rank was 8 and is 3") == "a trained run that would be evaluated"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    shutil.move(tmp_path / "run" / "adapter", tmp_path / "adapter")
    assert what_is_in_it("--resume") == "a run that would go on from checkpoint-4"
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert what_is_in_it("--resume") == "a run that would go on from its start"
