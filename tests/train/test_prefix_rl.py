"""Training by reward in this process, small: what it learns and writes, how it goes on, what it says of a mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interventions import PrefixReftModel
from reft_math.models import load_model
from reft_math.training.rl_trainer import PrefixRlTrainer

SMALL = (
    "--k 4 --train-size 24 --epochs 1 --batch-size 4 --samples 4 --eval-steps 2 --validation-size 6 --eval-size 4"
    " --calibration-size 4 --max-new-tokens 12"
)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def line(tiny_base: str) -> str:
    return f"train/prefix_rl.py --target-norm 0.3 --model {tiny_base} {SMALL}"


def test_writes_what_the_main_command_does_and_its_course(
    call: Callable[[str], None], tmp_path: Path, line: str, tiny_base: str, capfd: pytest.CaptureFixture[str]
) -> None:
    line = line.replace("--train-size 24", "--train-size 20")  # so that the last step has a batch less
    call(f"{line} --accumulation 2 --intervention bias --token-cost 0.01 --output-dir {tmp_path}/run")
    out, _ = capfd.readouterr()
    results = read(tmp_path / "run" / "results.json")
    trace, seen = results["bias_norm"]["trace"], results["validation"]
    assert trace["step"] == [1, 2, 3], "20 problems, two batches of 4 a step"
    rollouts = [json.loads(row) for row in (tmp_path / "run" / "records" / "rollouts.jsonl").read_text().splitlines()]
    assert len({row["id"] for row in rollouts}) == len(rollouts) <= 20 * 4 + 3 * 6
    lengths = [row["num_tokens"] for row in rollouts]
    assert all(min(lengths) <= tokens <= max(lengths) for tokens in trace["tokens"])
    for name in ("kl", "closing_position", "entropy", "norm"):
        assert len(trace[name]) == 3
    for right, tokens, reward in zip(trace["right"], trace["tokens"], trace["reward"], strict=True):
        assert reward == pytest.approx(right - 0.01 * tokens, abs=1e-6)
    assert seen["steps"] == [0, 2, 3]
    assert f"step {seen['best_step']} of 3 is kept" in out
    assert list(results["evaluation"]) == ["base", "prefix", "always_on", "base_given_careful_start"]
    assert results["gate"] in results["calibration"]
    assert (tmp_path / "run" / "training.png").stat().st_size > 10_000
    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert "20 answers of arithmetic" in card
    assert "4 drawn prefixes of 4 tokens for each" in card
    model = PrefixReftModel.from_pretrained(tmp_path / "run" / "adapter", load_model(tiny_base))
    assert model.prefix_config.k == 4
    assert any(bias.abs().max() > 0 for bias in model.biases().values())


def test_a_run_stopped_in_training_goes_on_to_the_same_weights(
    call: Callable[[str], None], tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    line += " --token-cost 0.1 --eval-size 0 --gate tokens:4"  # the untrained base is never right
    call(f"{line} --output-dir {tmp_path}/whole")
    compute = PrefixRlTrainer.compute_loss

    def stop(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == 5:
            raise KeyboardInterrupt
        return compute(trainer, *args, **kwargs)

    monkeypatch.setattr(PrefixRlTrainer, "compute_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        call(f"{line} --output-dir {tmp_path}/stopped")
    monkeypatch.setattr(PrefixRlTrainer, "compute_loss", compute)
    call(f"{line} --output-dir {tmp_path}/stopped --resume")
    whole, resumed = (read(tmp_path / name / "results.json") for name in ("whole", "stopped"))
    assert resumed["bias_norm"]["trace"] == whole["bias_norm"]["trace"]
    assert max(whole["bias_norm"]["trace"]["norm"]) > 0
    assert resumed["validation"]["accuracy"] == whole["validation"]["accuracy"]
    weights = [(tmp_path / name / "adapter" / "reft_model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]
    rows = [(tmp_path / name / "records" / "rollouts.jsonl").read_text() for name in ("whole", "stopped")]
    assert rows[0] == rows[1], "no prefix is completed twice"


@pytest.mark.slow
def test_answers_alone_teach_a_start_that_leads_to_them(call: Callable[[str], None], tmp_path: Path) -> None:
    call(
        "train/prefix_rl.py --target-norm 0.54 --intervention bias --train-size 192 --epochs 1 --eval-steps 12"
        f" --validation-size 40 --eval-size 0 --gate tokens:10 --output-dir {tmp_path}/run"
    )
    results = read(tmp_path / "run" / "results.json")
    assert results["validation"]["accuracy"][0] < 0.2
    assert max(results["validation"]["accuracy"]) > 0.6
    assert results["bias_norm"]["achieved"] == pytest.approx(0.54, rel=0.02)


def test_a_file_of_questions_and_answers_is_enough(
    call: Callable[[str], None], tmp_path: Path, line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [json.dumps({"question": f"Tom has {n} pens. How many?", "answer": n}) for n in range(10, 50)]
    (tmp_path / "own.jsonl").write_text("\n".join(rows) + "\n")
    call(f"{line} --dataset {tmp_path}/own.jsonl --train-size 8 --gate tokens:4 --output-dir {tmp_path}/run")
    assert read(tmp_path / "run" / "results.json")["evaluation"]["prefix"]["total"] == 4
    line = line.replace("prefix_rl", "prefix_reft").partition(" --k 4")[0]
    with pytest.raises(SystemExit):
        call(f"{line} --dataset {tmp_path}/own.jsonl --output-dir {tmp_path}/reft")
    assert "train/prefix_rl.py needs answers alone" in capfd.readouterr().err


def test_a_dry_run_writes_nothing(
    call: Callable[[str], None], tmp_path: Path, line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    call(f"{line} --dry-run --output-dir {tmp_path}/run")
    assert "drawn of the solution" in capfd.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--noise 0.5", "--noise is put into solutions"),
        ("--gradient-checkpointing true", "--gradient-checkpointing recomputes layers"),
        ("--save-steps 3", "leave --save-steps out"),
        ("--samples 1", "--samples must be at least 2"),
        ("--max-new-tokens 4", "--max-new-tokens must be more than --k, 4; got 4"),
        ("--kl-weight -1", "--kl-weight must be 0 or more"),
        ("--engine-model base", "pass --engine too"),
    ],
)
def test_a_mistake_is_one_line(
    call: Callable[[str], None],
    tmp_path: Path,
    line: str,
    arguments: str,
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        call(f"{line} {arguments} --output-dir {tmp_path}/run")
    (last,) = [row for row in capfd.readouterr().err.splitlines() if row.startswith("error:")]
    assert message in last
    assert not (tmp_path / "run").exists()
