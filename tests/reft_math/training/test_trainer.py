"""The trainer on a tiny Llama: the gradient it takes, resuming, and two processes."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import World, accelerates
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from interventions import PrefixReftConfig, PrefixReftModel, get_prefix_reft_model
from reft_math.data.prefix import IGNORE_INDEX, PrefixCollator
from reft_math.errors import UserError
from reft_math.models import load_model
from reft_math.models.sharding import shard
from reft_math.training.loss import sequence_cross_entropy
from reft_math.training.norm_control import CONTROLLERS, make_controller
from reft_math.training.number_loss import NumberCounts, NumberLoss, NumberTokens, number_loss
from reft_math.training.tracking import tracking
from reft_math.training.trainer import NormControl, PrefixTrainer


def rows(count: int) -> list[dict[str, Any]]:
    """Prompts of 2-6 tokens, targets of 1-5, so that no two batches are alike."""
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(3, 64, (length,), generator=generator).tolist()

    return [{"id": f"row/{row}", "prompt_ids": draw(2, 7), "target_ids": draw(1, 6)} for row in range(count)]


def make_trainer(
    model: PreTrainedModel,
    folder: Path,
    controller: str = "projection",
    target_scale_norm: float | None = None,
    intervention: str = "red",
    number_loss: NumberLoss | None = None,
    shards: bool = False,
    unit: float = 1.0,
    **arguments: Any,
) -> tuple[PrefixTrainer, PrefixReftModel]:
    torch.manual_seed(0)
    reft_model = get_prefix_reft_model(model, PrefixReftConfig(intervention=intervention))  # type: ignore[arg-type]
    if shards:
        shard(model)
    data = rows(22)
    settings = {
        "learning_rate": 2e-2,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "save_steps": 4,
        "report_to": "none",
        **arguments,
    }
    trainer = PrefixTrainer(
        model=reft_model,
        args=TrainingArguments(
            output_dir=str(folder),
            use_cpu=True,
            remove_unused_columns=False,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **settings,
        ),
        train_dataset=data,
        data_collator=PrefixCollator(0, "all"),
        norm_control=NormControl(reft_model, make_controller(controller, 0.3, len(data)), target_scale_norm, unit=unit),
        number_loss=number_loss,
    )
    return trainer, reft_model


class StopAt(TrainerCallback):
    """Ends the run after so many steps, as a kill between two steps would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


@pytest.mark.parametrize(("controller", "intervention"), [*((name, "red") for name in CONTROLLERS), ("pid", "loreft")])
def test_a_stopped_run_ends_at_the_same_weights_and_trace_to_the_last_bit(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path, controller: str, intervention: str
) -> None:
    unit = 0.5 if intervention == "loreft" else 1.0  # and with it a group of the optimiser's own
    trainer, whole = make_trainer(tiny_model(), tmp_path / "whole", controller, intervention=intervention, unit=unit)
    trainer.train()
    trace = trainer.norm_control.trace

    stopped, _ = make_trainer(tiny_model(), tmp_path / "stopped", controller, intervention=intervention, unit=unit)
    stopped.add_callback(StopAt(6))
    stopped.train()
    resumed, again = make_trainer(tiny_model(), tmp_path / "stopped", controller, intervention=intervention, unit=unit)
    resumed.train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-4"))

    assert trace["step"] == list(range(1, 13))
    assert resumed.norm_control.trace == trace
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, dict(again.named_parameters())[name]), name


# Most tokens are numbers, so that some rows have several, some none.
_IDS = torch.arange(3, 40)
NUMBERS = NumberTokens(_IDS, _IDS / 10.0, torch.ones_like(_IDS), _IDS < 0)
NUMBER_LOSS = NumberLoss(0.3, "ntl", NUMBERS, NumberCounts(0, 0, 0, 0))


@pytest.mark.parametrize("with_numbers", [False, True], ids=["cross-entropy", "numbers too"])
@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (4, 2), (2, 4), (3, 3)])
def test_any_split_of_a_step_has_the_gradient_of_the_mean_over_its_sequences(
    tiny_model: Callable[..., PreTrainedModel],
    tmp_path: Path,
    batch_size: int,
    accumulation: int,
    with_numbers: bool,
) -> None:
    """One SGD step over 8 sequences, also where the last of its batches is short (3 + 3 + 2).

    The authors' controller starts at a weight of 0.1, which stands before the loss on numbers too.
    """
    trainer, reft_model = make_trainer(
        tiny_model(),
        tmp_path,
        "note" if with_numbers else "none",
        number_loss=NUMBER_LOSS if with_numbers else None,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        optim="sgd",
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        save_strategy="no",
    )
    data = rows(8)
    trainer.train_dataset = data
    reference = get_prefix_reft_model(tiny_model(), PrefixReftConfig())
    losses, numbers = [], []
    for row in data:  # one sequence at a time, no padding, all logits
        tokens = torch.tensor([row["prompt_ids"] + row["target_ids"][:-1]])
        logits = reference(tokens).logits[0, -len(row["target_ids"]) :]
        targets = torch.tensor([row["target_ids"]])
        losses.append(sequence_cross_entropy(logits, targets))
        numbers.append(number_loss(logits, targets, NUMBERS, "ntl"))
    assert 0 in numbers
    cross_entropy, number = torch.cat(losses).mean(), torch.cat(numbers).mean()
    (0.1 * (cross_entropy + 0.3 * number) if with_numbers else cross_entropy).backward()
    trainer.train()
    if with_numbers:
        assert trainer.norm_control.trace["number_loss"] == pytest.approx([number.item()])
    for moved, parameter in zip(reft_model.parameters(), reference.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(moved, parameter - parameter.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (2, 4)])
def test_the_penalty_is_the_steps_however_it_is_split(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path, batch_size: int, accumulation: int
) -> None:
    """One SGD step from biases of norm 1: the penalty's share of the move is ``−2c(n − n*)/L`` along each bias."""
    moves = []
    for controller in ("none", "penalty"):
        trainer, reft_model = make_trainer(
            tiny_model(),
            tmp_path / controller,
            controller,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            optim="sgd",
            learning_rate=0.01,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            save_strategy="no",
        )
        trainer.train_dataset = rows(8)
        direction = torch.nn.functional.normalize(torch.ones(48), dim=0)
        with torch.no_grad():
            for bias in reft_model.biases().values():
                bias.copy_(direction)
        trainer.train()
        moves.append(reft_model.biases()[0].detach())
    torch.testing.assert_close(moves[1] - moves[0], -0.01 * 2 * 10.0 * (1 - 0.3) / 3 * direction, rtol=1e-4, atol=1e-7)


def test_the_norm_is_held_and_the_free_run_passes_it(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    norms = {}
    for name in ("none", "projection", "pid"):
        trainer, _ = make_trainer(tiny_model(), tmp_path / name, name, save_strategy="no")
        trainer.train()
        norms[name] = trainer.norm_control.trace["norm"]
    assert norms["none"][-1] > 0.4
    assert norms["projection"][-1] == pytest.approx(0.3, rel=1e-5)
    held = tracking(norms["pid"], 0.3)
    assert held["overshoot"] == pytest.approx(0, abs=0.05)
    assert held["steady_state_error"] == pytest.approx(0, abs=0.02)


def test_scales_are_held_too_where_asked(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    trainer, reft_model = make_trainer(tiny_model(), tmp_path, target_scale_norm=0.05)
    trainer.train()
    distances = [(scale - 1).norm().item() for scale in reft_model.scales().values()]
    assert sum(distances) / len(distances) == pytest.approx(0.05, rel=1e-4)
    assert trainer.norm_control.trace["scale_norm"][-1] == pytest.approx(0.05, rel=1e-4)


def test_the_controllers_factors_reach_loss_and_optimiser(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    """SGD: a loss weight w or a step scale w moves the parameters w times as far; the schedule is not touched."""
    moves = {}
    for name in ("none", "note", "step-size"):
        trainer, reft_model = make_trainer(
            tiny_model(),
            tmp_path / name,
            name,
            optim="sgd",
            max_steps=1,
            lr_scheduler_type="constant",
            save_strategy="no",
        )
        controller = trainer.norm_control.controller
        if name == "step-size":
            controller.pid.value = 0.1
        trainer.train()
        moves[name] = torch.cat(list(reft_model.biases().values())).detach()
        assert trainer.optimizer.param_groups[0]["lr"] == 2e-2
    torch.testing.assert_close(moves["note"], 0.1 * moves["none"], rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(moves["step-size"], 0.1 * moves["none"], rtol=1e-4, atol=1e-9)


def test_checkpointed_activations_give_the_same_weights(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    ends = []
    for checkpointing in (False, True):
        trainer, reft_model = make_trainer(
            tiny_model(), tmp_path, max_steps=3, save_strategy="no", gradient_checkpointing=checkpointing
        )
        trainer.train()
        ends.append(list(reft_model.parameters()))
    assert all(torch.equal(plain, recomputed) for plain, recomputed in zip(*ends, strict=True))


def test_trains_under_bfloat16_autocast_with_float32_interventions(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    ends = {}
    for autocast in (False, True):
        trainer, reft_model = make_trainer(tiny_model(), tmp_path, max_steps=3, save_strategy="no", bf16=autocast)
        trainer.train()
        ends[autocast] = torch.cat(list(reft_model.biases().values()))
    assert ends[True].dtype == torch.float32
    assert not torch.equal(ends[True], ends[False])
    assert torch.cosine_similarity(ends[True], ends[False], dim=0) > 0.9


@pytest.mark.parametrize("intervention", ["red", "loreft"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_in_half_precision_trains_as_its_float32_copy_does(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path, dtype: torch.dtype, intervention: str
) -> None:
    """The same rounded weights; interventions, their norm and the loss are float32 over either."""
    half, copy = tiny_model().to(dtype), tiny_model()
    copy.load_state_dict(half.state_dict())
    ends, traces = [], []
    for name, model in (("half", half), ("copy", copy)):
        trainer, reft_model = make_trainer(
            model, tmp_path / name, intervention=intervention, max_steps=8, save_strategy="no"
        )
        trainer.train()
        ends.append(torch.cat(list(reft_model.biases().values())))
        traces.append(trainer.norm_control.trace)
        assert {parameter.dtype for parameter in reft_model.parameters()} == {torch.float32}
    assert half.dtype == dtype
    assert torch.cosine_similarity(*ends, dim=0) > 0.95
    assert traces[0]["cross_entropy"] == pytest.approx(traces[1]["cross_entropy"], rel=0.02)
    assert traces[0]["norm"] == pytest.approx(traces[1]["norm"], rel=0.05)
    if intervention == "red":
        assert traces[0]["norm"][-1] == pytest.approx(0.3, rel=1e-5), "held where bfloat16 would be 0.2 % off"


def test_rows_without_a_target_add_nothing_and_a_step_of_them_moves_nothing(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    """One SGD step: a row without a target counts as a row, so with as many of them the step is half as long."""
    empty = [{"id": f"empty/{row}", "prompt_ids": [5, 6 + row], "target_ids": []} for row in range(3)]
    empty.append({"id": "padding", "prompt_ids": [], "target_ids": []})
    moves = []
    for name, data in (("some", rows(4)), ("half", rows(4) + empty), ("none", empty)):
        trainer, reft_model = make_trainer(
            tiny_model(),
            tmp_path / name,
            "none",
            per_device_train_batch_size=8,
            max_steps=1,
            optim="sgd",
            learning_rate=1.0,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            save_strategy="no",
            number_loss=NUMBER_LOSS,
        )
        trainer.train_dataset = data
        trainer.train()
        moves.append(torch.cat(list(reft_model.biases().values())).detach())
    torch.testing.assert_close(moves[1], moves[0] / 2, rtol=1e-5, atol=1e-7)
    assert moves[0].abs().max() > 1e-3
    assert moves[2].eq(0).all()


def test_tensorboard_gets_the_curves(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logger writes the model's config as JSON too."""
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    trainer, _ = make_trainer(tiny_model(), tmp_path, max_steps=2, save_strategy="no", report_to="tensorboard")
    trainer.train()
    assert list((tmp_path / "logs").rglob("events.out.tfevents.*"))


def test_trackio_gets_the_curves(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "logs"))
    pytest.importorskip("trackio", reason="trackio is not installed (uv sync --extra trackio)")
    trainer, _ = make_trainer(
        tiny_model(), tmp_path, max_steps=2, logging_steps=1, save_strategy="no", report_to="trackio"
    )
    trainer.train()
    with closing(sqlite3.connect(tmp_path / "logs" / "huggingface.db")) as database:
        rows = [json.loads(row) for (row,) in database.execute("SELECT metrics FROM metrics ORDER BY step")]
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert [row["train/loss"] for row in rows if "train/loss" in row] == logged


def test_a_target_is_never_padding(tiny_model: Callable[..., PreTrainedModel]) -> None:
    batch = PrefixCollator(0, "all")(rows(8))
    assert (batch["targets"] != 0).all()
    assert (batch["targets"] == IGNORE_INDEX).any()


def finish(base: str, folder: Path, sequences: int, shards: bool = False) -> dict[str, Any]:
    """Where runs end, in one process or among several: with ``sequences`` a step in each.

    Returns:
        ``red``: stopped after step 3, resumed from step 2; ``loreft``: under SGD, whose steps are as long as gradients
        are, with accumulated batches and recomputed activations. ``share``: of the base's bytes that this process
        holds before the first step.
    """
    ends: dict[str, Any] = {}

    def make(name: str, **arguments: Any) -> PrefixTrainer:
        model = load_model(base, to_be_sharded=shards)
        trainer, reft_model = make_trainer(
            model, folder / name, intervention=name, shards=shards, num_train_epochs=1, **arguments
        )
        held = [weight.to_local() if shards else weight for weight in model.parameters()]
        ends["share"] = sum(weight.nbytes for weight in held) / sum(weight.nbytes for weight in model.parameters())
        ends[name] = dict(reft_model.named_parameters())
        trainer.train_dataset = trainer.train_dataset[:20]
        return trainer

    for checkpoint in (None, str(folder / "red" / "checkpoint-2")):
        trainer = make("red", save_steps=2, per_device_train_batch_size=sequences)
        if checkpoint is None:
            trainer.add_callback(StopAt(3))
        trainer.train(resume_from_checkpoint=checkpoint)
    make(
        "loreft",
        save_strategy="no",
        per_device_train_batch_size=sequences // 2,
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
        optim="sgd",
        learning_rate=0.5,
    ).train()
    return ends


def stop(base: str, folder: Path, shards: bool) -> str:
    """What a run says of one row, whose embeddings are infinite."""
    model = load_model(base, to_be_sharded=shards)
    trainer, _ = make_trainer(model, folder, shards=shards, gradient_accumulation_steps=2)
    trainer.train_dataset[9]["prompt_ids"] = [2]  # a token of no other row
    model.model.embed_tokens.register_forward_hook(
        lambda module, args, output: output.masked_fill((args[0] == 2)[..., None], torch.inf)
    )
    with pytest.raises(UserError) as caught:
        trainer.train()
    return str(caught.value)


TWO_PROCESSES = """
import sys, torch
sys.path.insert(0, {tests!r})
from pathlib import Path
from reft_math.commands.processes import leave_process_group, process_state
from reft_math.models.sharding import fsdp_requested
from test_trainer import finish, stop
assert fsdp_requested()
folder = Path({folder!r})
ends = {{shards: finish({base!r}, folder / f"sharded {{shards}}", 2, shards) for shards in (True, False)}}
ends["stops"] = [stop({base!r}, folder / f"stops {{shards}}", shards) for shards in (True, False)]
torch.save(ends, folder / f"{{process_state().process_index}}.pt")
leave_process_group()
"""


@pytest.mark.slow
def test_two_processes_give_the_single_process_result(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path, world: Callable[..., World]
) -> None:
    """Under accelerate with gloo, two sequences each, against one process with four: FSDP2 first, then DDP."""
    base = str(tmp_path / "base")
    tiny_model(tie_word_embeddings=True).save_pretrained(base)
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES.format(tests=str(Path(__file__).parent), base=base, folder=str(tmp_path)))
    run = world(2, str(script), **accelerates("configs/fsdp2.yaml"))
    assert run.wait() == 0, run.errors()
    expected = finish(base, tmp_path / "alone", 4)
    processes = [torch.load(tmp_path / f"{process}.pt") for process in range(2)]
    stops = [found.pop("stops") for found in processes]
    assert stops[0] == stops[1], "one process has the row, and both stop there"
    for line in stops[0]:
        place, ids = re.findall(r"the output of (\S+) is NaN or infinite \(batch: (.*?)\)", line)[0]
        assert place == "model.model.layers.0.input_layernorm"
        assert "row/9" in ids.split(", ")
        assert len(ids.split(", ")) == 4
    for found in processes:
        for shards, ends in found.items():
            assert ends["share"] == (1 / 2 if shards else 1)
            for run in ("red", "loreft"):
                for name, parameter in ends[run].items():
                    torch.testing.assert_close(parameter, expected[run][name], rtol=1e-5, atol=1e-6)
