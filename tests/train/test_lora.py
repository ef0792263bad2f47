from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from interventions import PrefixReftConfig, get_prefix_reft_model
from reft_math.models import load_model

SMALL = "--train-size 32 --eval-size 8 --epochs 1 --max-new-tokens 20"


def test_trains_evaluates_and_counts_its_parameters(call: Callable[[str], None], tmp_path: Path) -> None:
    """Rank 1 on the embedded model's query, key and value has as many parameters as RED on ffn_up: 2·384·4."""
    call(f"train/lora.py --rank 1 --target-modules q_proj,k_proj,v_proj {SMALL} --output-dir {tmp_path}/run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["trainable_parameters"] == 3072
    assert list(results["evaluation"]) == ["base", "lora", "base_given_careful_start"]
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_a_run_stopped_in_evaluation_goes_on_with_the_trained_weights(
    call: Callable[[str], None], tmp_path: Path
) -> None:
    line = f"train/lora.py --rank 4 --learning-rate 0.02 {SMALL} --epochs 4 --output-dir {tmp_path}/run"
    call(line)
    records = tmp_path / "run" / "records" / "lora.jsonl"
    before = records.read_text()
    assert before != (tmp_path / "run" / "records" / "base.jsonl").read_text()
    records.unlink()
    call(f"{line} --resume")
    assert records.read_text() == before


def test_without_evaluation_it_says_how_to_evaluate(
    call: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Evaluations take peft's adapter as the model, and it has no gate."""
    call(f"train/lora.py {SMALL} --eval-size 0 --output-dir {tmp_path / 'run'}")
    line = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("not evaluated: "))
    assert line.endswith(f": eval/gsm8k.py --model {tmp_path / 'run' / 'adapter'}")
    assert "calibrate" not in line


@pytest.mark.parametrize("names", ["nosuch", "q_proj,nosuch"])
def test_modules_the_model_lacks_are_a_mistake(
    call: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str], names: str
) -> None:
    with pytest.raises(SystemExit):
        call(f"train/lora.py --target-modules {names} {SMALL} --output-dir {tmp_path}/run")
    assert "error: --target-modules must name linear modules of the model; got 'nosuch'" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "purpose"),
    [
        ("train/lora.py", "LoRA"),
        ("train/raft.py --tune lora", "--tune lora"),
        ("train/raft.py --tune full", "--tune full"),
    ],
)
def test_a_peft_adapter_is_no_base_for_what_saves_or_makes_such(
    call: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str], line: str, purpose: str
) -> None:
    """A second LoRA would take the first one's place, and a whole model tuned would be saved as its LoRA alone."""
    get_peft_model(load_model("arithmetic"), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "arithmetic"
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    for dry in ("", " --dry-run"):
        with pytest.raises(SystemExit):
            call(f"{line} --model {tmp_path}/lora --output-dir {tmp_path}/run{dry}")
        assert f"error: {purpose} needs a plain model" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def read_completions(path: Path) -> list[str]:
    return [json.loads(line)["completion"] for line in path.read_text().splitlines()]


def test_as_many_parameters_as_an_adapter(
    call: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """RED has 3,072 on the embedded model; rank 1 on query, key and value is the first choice that has as many."""
    get_prefix_reft_model(load_model("arithmetic"), PrefixReftConfig()).save_pretrained(tmp_path / "red")
    line = f"train/lora.py --match {tmp_path}/red {SMALL} --learning-rate 0.02 --epochs 4 --output-dir {tmp_path}/run"
    call(line)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["rank"], results["target_modules"]) == (1, "q_proj,k_proj,v_proj")
    assert results["trainable_parameters"] == 3072
    call(f"{line} --resume")  # the choice is the same: the settings are those of the folder
    # The adapter as an evaluation's model draws what training's own evaluation drew.
    adapter = tmp_path / "run" / "adapter"
    call(f"eval/arithmetic.py --model {adapter} --limit 8 --output-dir {tmp_path}/evaluation")
    ours, again = (
        read_completions(path)
        for path in (tmp_path / "run" / "records" / "lora.jsonl", tmp_path / "evaluation" / "records" / "base.jsonl")
    )
    assert ours == again != read_completions(tmp_path / "run" / "records" / "base.jsonl")
    with pytest.raises(SystemExit):
        call(f"eval/arithmetic.py --adapter {adapter} --output-dir {tmp_path}/other")
    assert "it is peft's: pass it as the model" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        call(f"{line} --rank 2 --overwrite")
