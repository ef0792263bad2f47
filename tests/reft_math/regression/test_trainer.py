"""Training regressors on the embedded model: the gradient, the step that is kept, resuming, and two processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import World
from safetensors.torch import load_file
from transformers import Adafactor, TrainerCallback, TrainingArguments

from reft_math.commands.options.regression import RegressionOptions
from reft_math.data.arithmetic.pretraining import rescale_up_projections
from reft_math.data.regression_rows import RegressionRow
from reft_math.errors import UserError
from reft_math.models import load_model, load_tokenizer
from reft_math.regression.batches import RegressionCollator, encode_rows
from reft_math.regression.build import load_base, load_regressor, make_regressor
from reft_math.regression.config import RegressorConfig
from reft_math.regression.regressor import Regressor
from reft_math.regression.trainer import WEIGHTS_NAME, RegressionTrainer, fit
from reft_math.training.checkpoints import CHECKSUMS_NAME, write_checksums


def rows(count: int, seed: int = 0) -> list[RegressionRow]:
    """Texts of several lengths, so that no two batches are alike, and targets from 0 to 9."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, 1000, (count,), generator=generator).tolist()
    return [RegressionRow(str(index), f"The number is {n}{'?' * (n % 4)}", n / 111) for index, n in enumerate(numbers)]


def regressor_of(tune: str, loss: str = "raft", scale: float = 1.0, **settings: Any) -> Regressor:
    """On the embedded model, with activations at ``ffn_up`` that are ``scale`` times as large."""
    config = RegressorConfig(**{"tune": tune, "loss": loss, "grid": "0:9:1", "base_model": "arithmetic", **settings})
    base = load_model("arithmetic")
    rescale_up_projections(base, scale)
    torch.manual_seed(0)
    return make_regressor(base, load_tokenizer("arithmetic"), config)


def fitted(
    regressor: Regressor,
    folder: Path,
    train: int = 24,
    validation: int = 7,
    **settings: Any,
) -> RegressionTrainer:
    """6 steps an epoch, evaluated after every second, unless told otherwise."""
    options = RegressionOptions(
        **{
            "learning_rate": 5e-3,
            "batch_size": 4,
            "epochs": 1.0,
            "warmup_ratio": 0.0,
            "eval_steps": 2,
            **settings,
        }
    )
    return fit(regressor, rows(train), rows(validation, seed=1), options, folder)


def weights(regressor: Regressor) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in regressor.trainable_parameters().items()}


def rmse_of(regressor: Regressor) -> float:
    """On the validation rows, one at a time."""
    wanted = rows(7, seed=1)
    errors = np.array(regressor.predict([row.text for row in wanted], batch_size=1)) - [row.target for row in wanted]
    return float(np.sqrt((errors**2).mean()))


# --- a step ---------------------------------------------------------------------------------------------------------


class Gradients(TrainerCallback):
    """Keeps every step's gradient."""

    def __init__(self, regressor: Regressor) -> None:
        self.regressor = regressor
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        parameters = self.regressor.trainable_parameters()
        self.steps.append({name: value.grad.clone() for name, value in parameters.items() if value.grad is not None})


def gradients_of(
    regressor: Regressor, folder: Path, batch_size: int, accumulation: int
) -> list[dict[str, torch.Tensor]]:
    """Of every step of one epoch over 11 rows, at a learning rate of 0: all are taken at the start."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        learning_rate=0.0,
        num_train_epochs=1,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=0.0,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        label_names=["targets"],
    )
    gradients = Gradients(regressor)
    RegressionTrainer(
        model=regressor,
        args=arguments,
        train_dataset=encode_rows(rows(11), regressor.tokenizer, regressor.template),
        data_collator=RegressionCollator(0),
        callbacks=[gradients],
    ).train()
    return gradients.steps


@pytest.mark.parametrize(("tune", "loss"), [("red", "raft"), ("lora", "ce"), ("full", "head:mean")])
def test_any_split_of_a_step_has_the_gradient_of_the_mean_over_its_rows(tmp_path: Path, tune: str, loss: str) -> None:
    """11 rows: steps of 4, 4 and 3, however they are cut into batches, also where a step's last batch is short."""
    regressor = regressor_of(tune, loss, grid="0:9:0.5", normalised=loss == "raft")
    splits = {(size, times): gradients_of(regressor, tmp_path, size, times) for size, times in ((4, 1), (2, 2), (1, 4))}
    total: dict[str, torch.Tensor] = {}
    for row in rows(11):  # one at a time, no padding
        regressor.train().zero_grad()
        batch = RegressionCollator(0)(encode_rows([row], regressor.tokenizer, regressor.template))
        regressor(**batch)["loss"].sum().backward()
        for name, parameter in regressor.trainable_parameters().items():
            if parameter.grad is not None:
                total[name] = total.get(name, 0) + parameter.grad
    for steps in [*splits.values(), gradients_of(regressor, tmp_path, 3, 2)]:
        sizes = [4, 4, 3] if len(steps) == 3 else [6, 5]
        for name, expected in total.items():
            found = sum(size * step[name] for size, step in zip(sizes, steps, strict=True))
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    for steps in splits.values():
        for step, whole in zip(steps, splits[4, 1], strict=True):
            for name, expected in whole.items():
                torch.testing.assert_close(step[name], expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(("given", "expected"), [(0.25, 0.25), (None, 0.01)])
def test_a_head_learns_at_its_own_rate_and_the_rest_at_theirs(
    tmp_path: Path, given: float | None, expected: float
) -> None:
    """AdamW's first step without decay moves every weight by its learning rate."""
    regressor = regressor_of("red", "head:mean")
    before = weights(regressor)
    fitted(regressor, tmp_path, train=4, learning_rate=0.01, loss="head:mean", head_learning_rate=given)
    moved = {name: (value - before[name]).abs().max().item() for name, value in weights(regressor).items()}
    assert len(moved) == 4 * 2 + 2
    for name, distance in moved.items():
        assert distance == pytest.approx(expected if name.startswith("head.") else 0.01, rel=1e-3), name


@pytest.mark.parametrize(
    ("optim", "kind", "settings"),
    [
        ("adamw_torch", torch.optim.AdamW, {"weight_decay": 0.0}),
        ("sgd", torch.optim.SGD, {"momentum": 0}),
        ("adafactor", Adafactor, {"eps": (1e-30, 1e-3), "decay_rate": -0.8, "relative_step": False}),  # the paper's
    ],
)
def test_the_optimiser_is_the_trainers_of_that_name(
    tmp_path: Path, optim: str, kind: type, settings: dict[str, Any]
) -> None:
    regressor = regressor_of("red", "head:mean")
    before = weights(regressor)
    trainer = fitted(
        regressor, tmp_path, train=4, learning_rate=0.01, loss="head:mean", head_learning_rate=0.02, optim=optim
    )
    optimizer = trainer.optimizer.optimizer
    assert type(optimizer) is kind
    for group, rate in zip(optimizer.param_groups, (0.02, 0.01), strict=True):
        assert group.items() >= {**settings, "lr": rate}.items()
    assert all(not torch.equal(value, before[name]) for name, value in weights(regressor).items())


@pytest.mark.parametrize(("tune", "loss"), [("red", "raft"), ("lora", "ce"), ("full", "head:mlp")])
def test_checkpointed_activations_give_the_same_weights(tmp_path: Path, tune: str, loss: str) -> None:
    """Recomputed within the interventions of their forward pass."""
    ends, passes = [], []
    for checkpointing in (False, True):
        regressor = regressor_of(tune, loss, grid="0:9:0.5")
        calls: list[int] = []
        regressor.model.get_decoder().layers[1].mlp.register_forward_pre_hook(
            lambda module, inputs, calls=calls: calls.append(module.training)
        )
        fitted(regressor, tmp_path / str(checkpointing), train=8, gradient_checkpointing=checkpointing)
        ends.append(weights(regressor))
        passes.append(sum(calls))
    assert passes == [2, 4]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


# --- numbers that are not finite ------------------------------------------------------------------------------------


class SpoilAt(TrainerCallback):
    """A NaN among the weights, before a step or after it."""

    def __init__(self, parameter: torch.Tensor, step: int, after: bool) -> None:
        self.parameter, self.step, self.after = parameter, step, after

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step and not self.after:
            self.parameter.data[0] = torch.nan

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step and self.after:
            self.parameter.data[0] = torch.nan


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (False, r"at step 4 the weight adapter\..*layer_2.*bias is NaN or infinite \(batch: (\d+, ){3}\d+\)"),
        (True, r"after step 4 that of validation row 0 is NaN or infinite"),
    ],
)
def test_a_nan_stops_the_run_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool, message: str
) -> None:
    regressor = regressor_of("red")
    name = next(name for name in regressor.trainable_parameters() if "layer_2" in name and name.endswith("bias"))
    callback = SpoilAt(regressor.trainable_parameters()[name], 4, after)
    monkeypatch.setattr("reft_math.regression.trainer.BestCheckpoint", lambda: callback)
    with pytest.raises(UserError, match=message):
        fitted(regressor, tmp_path)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert all(value.isfinite().all() for value in load_file(tmp_path / "checkpoint-2" / WEIGHTS_NAME).values())


# --- the step that is kept ------------------------------------------------------------------------------------------

# RED at a rate too large: the RMSE falls, then rises.
OVERSHOOTING = {"learning_rate": 0.02, "epochs": 2.0}


def test_the_best_step_is_kept_and_not_the_last(tmp_path: Path) -> None:
    regressor = regressor_of("red")
    trainer = fitted(regressor, tmp_path, **OVERSHOOTING)
    trace = trainer.trace()
    assert trace["steps"] == [0, 2, 4, 6, 8, 10, 12]
    best = int(np.argmin(trace["rmse"]))
    assert 0 < best < 6
    assert trace["best_step"] == trace["steps"][best]
    assert rmse_of(regressor) == pytest.approx(trace["rmse"][best], rel=1e-4)
    assert trace["rmse"][0] == pytest.approx(rmse_of(load_base(regressor.regressor_config)), rel=1e-4)
    assert trace["trained_parameters"] == 4 * 2 * 384

    trainer.save_regressor(tmp_path / "regressor")
    assert json.loads((tmp_path / "regressor" / "training.json").read_text()) == trace
    assert rmse_of(load_regressor(tmp_path / "regressor")) == rmse_of(regressor)


def test_patience_ends_a_run_that_gets_no_better(tmp_path: Path) -> None:
    trace = fitted(regressor_of("red"), tmp_path / "patient", **OVERSHOOTING).trace()
    best = int(np.argmin(trace["rmse"]))
    stopped = fitted(regressor_of("red"), tmp_path / "stopped", patience=1, **OVERSHOOTING).trace()
    end = next(index for index in range(2, 7) if trace["rmse"][index] >= min(trace["rmse"][1:index])) + 1
    assert stopped["steps"] == trace["steps"][:end]
    assert stopped["rmse"] == trace["rmse"][:end]
    assert end <= 6
    assert stopped["best_step"] == trace["steps"][best]


def test_a_run_shorter_than_the_evaluations_are_apart_is_evaluated_at_its_end(tmp_path: Path) -> None:
    regressor = regressor_of("red")
    trace = fitted(regressor, tmp_path, train=12, eval_steps=100).trace()
    assert (trace["steps"], trace["best_step"]) == ([0, 3], 3)
    assert rmse_of(regressor) == pytest.approx(trace["rmse"][1], rel=1e-4)


# --- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tune", "loss"), [("red", "head:logit"), ("lora", "raft")])
def test_checkpoints_hold_what_is_trained_and_nothing_else(tmp_path: Path, tune: str, loss: str) -> None:
    regressor = regressor_of(tune, loss)
    fitted(regressor, tmp_path, train=8, loss=loss)
    tensors = load_file(tmp_path / "checkpoint-2" / "trainable.safetensors")
    assert {name: value.shape for name, value in tensors.items()} == {
        name: value.shape for name, value in weights(regressor).items()
    }
    names = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
    trainers = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    assert names == {"trainable.safetensors", *trainers, CHECKSUMS_NAME}


@pytest.mark.parametrize(
    ("tune", "loss", "settings"),
    [
        ("red", "raft", OVERSHOOTING),
        ("red", "raft", {**OVERSHOOTING, "patience": 3}),
        ("loreft", "mbr", {"schedule": "cosine", "warmup_ratio": 0.3, "accumulation": 2, "epochs": 2.0}),
        ("lora", "ce", {}),
        ("full", "head:mlp", {"learning_rate": 1e-3, "head_learning_rate": 1e-2}),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(value),
)
def test_a_stopped_run_ends_at_the_same_weights_and_trace_to_the_last_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tune: str, loss: str, settings: dict[str, Any]
) -> None:
    """Stopped a step after its second checkpoint and moved, also where the best step lies before the stop."""
    whole = regressor_of(tune, loss)
    trace = fitted(whole, tmp_path / "whole", loss=loss, **settings).trace()

    step = RegressionTrainer.training_step

    def stop(trainer: RegressionTrainer, *args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == 5:
            raise KeyboardInterrupt
        return step(trainer, *args, **kwargs)

    monkeypatch.setattr(RegressionTrainer, "training_step", stop)
    with pytest.raises(KeyboardInterrupt):
        fitted(regressor_of(tune, loss), tmp_path / "stopped", loss=loss, **settings)
    monkeypatch.setattr(RegressionTrainer, "training_step", step)
    (tmp_path / "stopped").rename(tmp_path / "moved")
    resumed = regressor_of(tune, loss)
    trainer = fitted(resumed, tmp_path / "moved", loss=loss, resume=True, **settings)

    assert trainer.trace() == trace
    assert len(trace["steps"]) > 3
    ends = weights(resumed)
    for name, value in weights(whole).items():
        assert torch.equal(value, ends[name]), name


# --- two processes --------------------------------------------------------------------------------------------------

TWO_PROCESSES = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from reft_math.commands.processes import leave_process_group
from test_trainer import fitted, regressor_of, weights
regressor = regressor_of("red", scale=64)
trace = fitted(regressor, Path({folder!r}), batch_size=2).trace()
leave_process_group()
torch.save((weights(regressor), trace), {result!r})
"""


def test_a_run_killed_when_a_new_best_has_no_checksums_yet_ends_as_one_in_peace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 2, 4 and 6: the best so far, a worse one, a better one that does not count yet."""
    found = iter([1.0, 2.0, 0.5, 1.0, 2.0, 0.5, 0.5])  # in peace, until the kill, and again
    monkeypatch.setattr(RegressionTrainer, "_rmse", lambda *_: {"rmse": next(found)})
    whole = regressor_of("red")
    trace = fitted(whole, tmp_path / "whole").trace()

    def killed(checkpoint: Path) -> None:
        if checkpoint.name == "checkpoint-6":
            raise KeyboardInterrupt
        write_checksums(checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr("reft_math.training.checkpoints.write_checksums", killed)
        with pytest.raises(KeyboardInterrupt):
            fitted(regressor_of("red"), tmp_path / "killed")
    resumed = regressor_of("red")
    assert fitted(resumed, tmp_path / "killed", resume=True).trace() == trace
    assert trace["best_step"] == 6
    assert all(map(torch.equal, weights(resumed).values(), weights(whole).values()))


def test_a_best_checkpoint_that_is_gone_is_missed(tmp_path: Path) -> None:
    """The trainer itself would go on, and keep the last step for the best."""
    trainer = fitted(regressor_of("red"), tmp_path, **OVERSHOOTING)
    shutil.rmtree(tmp_path / f"checkpoint-{trainer.state.best_global_step}")
    with pytest.raises(UserError, match=r"best checkpoint is gone, .*; start anew with --overwrite"):
        fitted(regressor_of("red"), tmp_path, resume=True, **OVERSHOOTING)


@pytest.mark.slow
def test_two_processes_give_the_single_process_result(tmp_path: Path, world: Callable[..., World]) -> None:
    """With gloo, two rows each, against one process with four; 7 validation rows are not 8.

    Activations are as large as they were trained: where they are small, Adam's steps make more of rounding.
    """
    script, result = tmp_path / "script.py", tmp_path / "two.pt"
    script.write_text(
        TWO_PROCESSES.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "two"), result=str(result))
    )
    run = world(2, str(script))
    assert run.wait() == 0, run.errors()
    alone = regressor_of("red", scale=64)
    trace = fitted(alone, tmp_path / "one").trace()
    together, their_trace = torch.load(result)
    for name, value in weights(alone).items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-5)
    assert their_trace["rmse"] == pytest.approx(trace["rmse"], rel=1e-5)
    assert their_trace == {**trace, "rmse": their_trace["rmse"]}
