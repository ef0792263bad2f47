"""Runs that meet a NaN or an infinity: where they stop, what they say, what is left on disk."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel, TrainerCallback, TrainingArguments

from interventions import PrefixReftConfig, PrefixReftModel, get_prefix_reft_model
from reft_math.data.prefix import PrefixCollator
from reft_math.errors import UserError
from reft_math.training.norm_control import make_controller
from reft_math.training.trainer import NormControl, PrefixTrainer

POISON = 63  # a token of one row alone
ROWS = [{"id": f"row/{index}", "prompt_ids": [5, 6 + index], "target_ids": [7, 8, 9]} for index in range(16)]
ROWS[11]["prompt_ids"] = [5, POISON]
TinyModel = Callable[..., PreTrainedModel]


class Seen(TrainerCallback):
    """Does something before a step; notes which step is begun."""

    def __init__(self, step: int = 0, act: Callable[[], None] = lambda: None) -> None:
        self.step, self.act, self.begun = step, act, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun = state.global_step + 1
        if self.begun == self.step:
            self.act()


def make(
    model: PreTrainedModel, folder: Path, controller: str = "projection", **arguments: Any
) -> tuple[PrefixTrainer, PrefixReftModel]:
    """Steps of two batches of two rows, a checkpoint after each."""
    reft_model = get_prefix_reft_model(model, PrefixReftConfig())
    settings = {"learning_rate": 1e-2, "save_steps": 1, "num_train_epochs": 1, **arguments}
    trainer = PrefixTrainer(
        model=reft_model,
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            report_to="none",
            use_cpu=True,
            remove_unused_columns=False,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **settings,
        ),
        train_dataset=ROWS,
        data_collator=PrefixCollator(0, "all"),
        norm_control=NormControl(reft_model, make_controller(controller, 0.3, len(ROWS)), target_scale_norm=None),
    )
    return trainer, reft_model


def stopped(trainer: PrefixTrainer) -> tuple[int, str, list[str]]:
    """The step, the place and the batch that the error names."""
    with pytest.raises(UserError) as caught:
        trainer.train()
    message = str(caught.value)
    assert "\n" not in message
    found = re.search(r"at step (\d+) the (.*) is NaN or infinite \(batch: (.*?)\)", message)
    assert found is not None, message
    return int(found[1]), found[2], found[3].split(", ")


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def embedding(model: PreTrainedModel, reft_model: PrefixReftModel) -> str:
    model.get_input_embeddings().weight.data[POISON] = inf
    return "output of model.model.embed_tokens"


def a_product(model: PreTrainedModel, reft_model: PrefixReftModel) -> str:
    """Inputs so large that the product overflows."""
    model.model.layers[1].mlp.down_proj.register_forward_pre_hook(
        lambda module, args: (args[0] * (1e38 if contains_poison(model) else 1),)
    )
    return "output of model.model.layers.1.mlp.down_proj"


def contains_poison(model: PreTrainedModel) -> bool:
    return bool((model.read == POISON).any())


def an_intervention(model: PreTrainedModel, reft_model: PrefixReftModel) -> str:
    """Its scales are finite, and so is what it reads; its edit is not."""
    name, intervention = list(reft_model.interventions.items())[1]
    intervention.register_forward_pre_hook(lambda module, args: (args[0] * (1e39 if contains_poison(model) else 1),))
    return f"output of interventions.{name}"


def a_gradient(model: PreTrainedModel, reft_model: PrefixReftModel) -> str:
    """``√(h − h)`` is 0 and its gradient is not: that of layer 1's output reaches layers 1 and 0, and 2 has its own."""

    def add(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor | None:
        return output + (output - output).sqrt() if contains_poison(model) else None

    model.model.layers[1].mlp.up_proj.register_forward_hook(add)
    return f"gradient of {list(reft_model.interventions)[1]}.bias"


@pytest.mark.parametrize("fault", [embedding, a_product, an_intervention, a_gradient])
def test_a_row_that_overflows_stops_the_run_before_its_step(
    tiny_model: TinyModel, tmp_path: Path, fault: Callable[..., str]
) -> None:
    """Its place and batch are named, and the last checkpoint is what the model holds: the step was not taken."""
    model = tiny_model()
    model.register_forward_pre_hook(
        lambda module, args, kwargs: setattr(model, "read", kwargs["input_ids"]), with_kwargs=True
    )
    trainer, reft_model = make(model, tmp_path)
    place = fault(model, reft_model)
    order = Seen()
    trainer.add_callback(order)
    step, found, ids = stopped(trainer)
    assert found == place
    assert step == order.begun
    assert "row/11" in ids
    assert len(ids) == 2, "the one batch of the step's two"
    assert checkpoints(tmp_path) == [f"checkpoint-{done}" for done in range(1, step)]
    assert step > 1, "the seed draws the row later"
    saved = load_file(tmp_path / f"checkpoint-{step - 1}" / "reft_model.safetensors")
    for name, value in reft_model.interventions.state_dict().items():
        assert torch.equal(saved[name], value)


def test_a_weight_that_goes_bad_is_named(tiny_model: TinyModel, tmp_path: Path) -> None:
    trainer, reft_model = make(tiny_model(), tmp_path)
    name, intervention = list(reft_model.interventions.items())[2]
    trainer.add_callback(Seen(3, lambda: intervention.scale.data[4:5].fill_(nan)))
    assert stopped(trainer)[:2] == (3, f"weight {name}.scale")


def test_a_step_that_overflows_the_weights_is_never_saved(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Found by the next loss, though no checkpoint was due before."""
    trainer, _ = make(tiny_model(), tmp_path, "none", optim="sgd", learning_rate=inf, save_steps=4)
    with pytest.raises(UserError, match=r"at step 2 the weight .* NaN or infinite .* there is no earlier checkpoint"):
        trainer.train()
    assert checkpoints(tmp_path) == []


def test_weights_are_looked_at_before_they_are_saved(tiny_model: TinyModel, tmp_path: Path) -> None:
    """After the last step no loss would tell."""
    trainer, reft_model = make(tiny_model(), tmp_path)
    bias = reft_model.biases()[0]

    class Spoil(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == state.max_steps:
                bias.data[0] = nan

    trainer.add_callback(Spoil())
    step, place, ids = stopped(trainer)
    assert (step, len(ids)) == (4, 4)
    assert place == f"weight {next(iter(reft_model.interventions))}.bias, as the step left it,"
    assert checkpoints(tmp_path) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


def test_an_infinite_penalty_is_the_loss(tiny_model: TinyModel, tmp_path: Path) -> None:
    trainer, _ = make(tiny_model(), tmp_path, "penalty")
    trainer.norm_control.controller.coefficient = inf
    assert stopped(trainer)[:2] == (1, "loss")


def test_float16s_loss_scale_comes_down_before_a_gradient_counts(tiny_model: TinyModel, tmp_path: Path) -> None:
    """From 4 by halves: two steps are left out, and in the third, at 1, the gradient is the loss's own."""
    model = tiny_model()
    model.read = torch.tensor([POISON])
    trainer, reft_model = make(model, tmp_path)
    before = {name: value.clone() for name, value in reft_model.interventions.state_dict().items()}
    place = a_gradient(model, reft_model)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    assert stopped(trainer)[:2] == (3, place)
    assert all(torch.equal(before[name], value) for name, value in reft_model.interventions.state_dict().items())


@pytest.mark.parametrize("line", ["train/prefix_reft.py", "train/lora.py", "train/raft.py --validation-size 4"])
def test_training_commands_stop_in_one_line_and_leave_no_adapter(
    call: Callable[[str], None], tiny_base: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], line: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    model.model.layers[1].mlp.up_proj.weight.data[3, 3] = nan
    model.save_pretrained(tmp_path / "base")
    for path in Path(tiny_base).glob("tokenizer*"):
        (tmp_path / "base" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(SystemExit) as ended:
        call(f"{line} --model {tmp_path}/base --template plain --train-size 8 --output-dir {tmp_path}/run")
    assert ended.value.code == 2
    error = capfd.readouterr().err
    (said,) = [text for text in error.splitlines() if text.startswith("error: ")]
    place = (
        r"row original1/test/0/\d+"
        if "raft" in line
        else r"layers\.1\.mlp\.up_proj\S* is .* \(batch: arithmetic/train/"
    )
    assert re.search(place, said)
    assert not list((tmp_path / "run").rglob("*.safetensors"))
