from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from reft_math.data.regression_rows import RegressionRow
from reft_math.errors import UserError
from reft_math.regression.batches import RegressionCollator, encode_rows
from reft_math.regression.config import RegressorConfig
from reft_math.regression.heads import HEADS, HeadName
from reft_math.regression.regressor import Regressor, make_template
from reft_math.regression.scores import PromptOutputs

MakeTiny = Callable[..., Regressor]
Array = NDArray[np.float64]

TEXTS = ("good", "not so good, not bad", "bad, so bad")
TARGETS = (1.0, 3.25, 4.75)
NESTED = {"grid": "1,10,100"}
LOG: dict[str, Any] = {"loss": "log", "grid": "1", "bounds": (1.0, 5.0)}


def batch_of(regressor: Regressor) -> dict[str, torch.Tensor]:
    rows = [RegressionRow(text, text, target) for text, target in zip(TEXTS, TARGETS, strict=True)]
    collator = RegressionCollator(int(regressor.tokenizer.pad_token_id))
    return collator(encode_rows(rows, regressor.tokenizer, regressor.template))


def prompts_of(regressor: Regressor) -> dict[str, torch.Tensor]:
    batch = batch_of(regressor)
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def log_prob(regressor: Regressor, text: str, number: str, ends: bool = False) -> torch.Tensor:
    """Of a number after one prompt, both tokenised as one text, without padding; with the end token if it ends."""
    prompt = f"Question: {text}\nAnswer:"
    tokens = regressor.tokenizer.encode(f"{prompt} {number}") + [regressor.tokenizer.eos_token_id] * ends
    start = len(regressor.tokenizer.encode(prompt))
    steps = regressor.model(input_ids=torch.tensor([tokens])).logits[0, start - 1 : -1].log_softmax(dim=-1)
    return steps.gather(1, torch.tensor(tokens[start:])[:, None]).sum()


@torch.no_grad()
def probabilities(regressor: Regressor, text: str, numbers: Sequence[str]) -> Array:
    """With the end, where one of the numbers begins another."""
    ends = any(other != number and other.startswith(number) for other in numbers for number in numbers)
    return np.array([log_prob(regressor, text, number, ends).exp().item() for number in numbers])


# --- the loss and the predictions, row by row -------------------------------------------------------------------------

Formula = Callable[[Array, Array, float], float]


def raft(p: Array, y: Array, target: float) -> float:
    return float((p @ y - target) ** 2)


def mbr(p: Array, y: Array, target: float) -> float:
    return float(p @ (target - y) ** 2)


def cross_entropy(p: Array, y: Array, target: float) -> float:
    return float(-np.log(p[np.abs(y - target).argmin()]))


def log_loss(p: Array, y: Array, target: float) -> float:
    return float(-target * np.log(p[0]) - (1 - target) * np.log(1 - p[0]))


@pytest.mark.parametrize(
    ("settings", "numbers", "formula"),
    [
        ({"loss": "raft"}, ["1", "2", "3", "4", "5"], raft),
        ({"loss": "raft", "normalised": True}, ["1", "2", "3", "4", "5"], raft),
        ({"loss": "raft", "grid": "0:5:2.5"}, ["0.0", "2.5", "5.0"], raft),
        ({"loss": "raft", "grid": "8:12:2"}, ["8", "10", "12"], raft),
        (
            {"loss": "raft", "grid": "0:1:0.5", "bounds": (1.0, 5.0), "normalised": True},
            ["0.0", "0.5", "1.0"],
            raft,
        ),
        ({"loss": "raft", "grid": "3"}, ["3"], raft),
        ({"loss": "mbr"}, ["1", "2", "3", "4", "5"], mbr),
        ({"loss": "mbr", "normalised": True, "grid": "1,9", "texts": ("bad", "good")}, ["bad", "good"], mbr),
        ({"loss": "ce"}, ["1", "2", "3", "4", "5"], cross_entropy),
        (
            {"loss": "ce", "grid": "0:1:0.25", "bounds": (1.0, 5.0)},
            ["0.00", "0.25", "0.50", "0.75", "1.00"],
            cross_entropy,
        ),
        (LOG, ["1"], log_loss),
        ({**LOG, "texts": ("good",)}, ["good"], log_loss),
        ({"loss": "raft", **NESTED}, ["1", "10", "100"], raft),
        ({"loss": "raft", "normalised": True, **NESTED}, ["1", "10", "100"], raft),
        ({"loss": "mbr", **NESTED}, ["1", "10", "100"], mbr),
        ({"loss": "ce", **NESTED}, ["1", "10", "100"], cross_entropy),
    ],
)
@torch.no_grad()
def test_a_rows_loss_is_its_formula_on_scores_of_passes_of_their_own(
    make_tiny: MakeTiny, settings: dict[str, Any], numbers: list[str], formula: Formula
) -> None:
    """The loss on the scale of the bounds, the predictions on that of the data."""
    regressor = make_tiny(**settings)
    found = regressor(**batch_of(regressor))
    lower, upper = settings.get("bounds", (0.0, 1.0))
    values = regressor.grid.values.numpy()
    losses, predictions = [], []
    for text, target in zip(TEXTS, TARGETS, strict=True):
        p = probabilities(regressor, text, numbers)
        q = p / p.sum() if settings.get("normalised") else p
        losses.append(formula(q, values, (target - lower) / (upper - lower)))
        predicted = values[p.argmax()] if settings["loss"] == "ce" else q @ values
        predictions.append(lower + (upper - lower) * predicted)
    assert set(found) == {"loss", "predictions"}
    torch.testing.assert_close(found["loss"], torch.tensor(losses, dtype=torch.float64), rtol=0, atol=1e-9)
    expected = torch.tensor(predictions, dtype=torch.float64)
    torch.testing.assert_close(found["predictions"], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("settings", "numbers"),
    [
        ({"grid": "1:5:1"}, ["1", "3", "5"]),
        ({"grid": "2:12:5"}, ["2", "2", "7"]),
        ({"grid": "1:12:11"}, ["1", "1", "1"]),  # the longest string is no row's
        ({"grid": "0:1:0.25", "bounds": (1.0, 5.0)}, ["0.00", "0.50", "1.00"]),
        ({"grid": "1,3", "texts": ("bad", "not so good")}, ["bad", "not so good", "not so good"]),
    ],
)
def test_cross_entropy_trains_the_nearest_numbers_string_and_its_end(
    make_tiny: MakeTiny, settings: dict[str, Any], numbers: list[str]
) -> None:
    regressor = make_tiny(loss="ce", **settings).train()
    found = regressor(**batch_of(regressor))
    assert set(found) == {"loss"}
    pairs = zip(TEXTS, numbers, strict=True)
    expected = torch.stack([-log_prob(regressor, text, number, ends=True) for text, number in pairs])
    torch.testing.assert_close(found["loss"], expected, rtol=0, atol=1e-9)
    weight = regressor.model.model.layers[0].mlp.up_proj.weight
    ours, theirs = (torch.autograd.grad(loss.sum(), weight)[0] for loss in (found["loss"], expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)  # norms have float32 inside


@pytest.mark.parametrize("bounds", [None, (-1.0, 3.0)])
@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_a_heads_loss_is_the_squared_error_of_what_it_makes_of_a_plain_pass(
    make_tiny: MakeTiny, name: HeadName, bounds: tuple[float, float] | None
) -> None:
    added = "average" if name == "raft-all" else None
    regressor = make_tiny(loss=f"head:{name}", grid="0:5:2.5", bounds=bounds, added_tokens=added)
    assert regressor.head is not None
    found = regressor(**batch_of(regressor))
    lower, upper = bounds or (0.0, 1.0)
    for row, (text, target) in enumerate(zip(TEXTS, TARGETS, strict=True)):
        input_ids = torch.tensor([regressor.tokenizer.encode(f"Question: {text}\nAnswer:")])
        plain = regressor.model(input_ids=input_ids, output_hidden_states=True)
        p = torch.tensor(probabilities(regressor, text, ["0.0", "2.5", "5.0"]))
        reading = PromptOutputs(plain.logits[:, -1], torch.ones_like(input_ids), plain.hidden_states[-1], p.log()[None])
        predicted = regressor.head(reading).item()
        assert found["loss"][row].item() == pytest.approx(
            (predicted - (target - lower) / (upper - lower)) ** 2, rel=1e-4
        )
        assert found["predictions"][row].item() == pytest.approx(lower + (upper - lower) * predicted, rel=1e-4)


@torch.no_grad()
def test_the_final_tokens_logit_is_that_of_the_end(make_tiny: MakeTiny) -> None:
    regressor = make_tiny(loss="head:logit")
    input_ids = torch.tensor([regressor.tokenizer.encode("Question: good\nAnswer:")])
    logit = regressor.model(input_ids=input_ids).logits[0, -1, regressor.tokenizer.eos_token_id].item()
    assert regressor.predict(["good"]) == pytest.approx([logit], abs=1e-6)


@pytest.mark.parametrize("bounds", [None, (-1.0, 9.0)])
@pytest.mark.parametrize("name", HEADS)
def test_a_head_with_a_bias_starts_at_the_training_mean(
    make_tiny: MakeTiny, name: HeadName, bounds: tuple[float, float] | None
) -> None:
    """By one shift for all texts; the others start as RAFT, and stay."""
    added = "first" if name == "raft-all" else None
    regressor = make_tiny(loss=f"head:{name}", bounds=bounds, added_tokens=added)
    before = np.array(regressor.predict(TEXTS))
    regressor.start_at_mean([RegressionRow(text, text, target) for text, target in zip(TEXTS, TARGETS, strict=True)])
    shift = 0 if name.startswith("raft") else np.mean(TARGETS) - before.mean()
    assert regressor.predict(TEXTS) == pytest.approx(before + shift, abs=1e-5)


@pytest.mark.parametrize("grid", ["1:5:1", "0:5:2.5"])
@pytest.mark.parametrize("added_tokens", [None, "average"])
def test_before_training_raft_is_the_squared_error_of_zero_shot_rail(
    make_tiny: MakeTiny, grid: str, added_tokens: str | None
) -> None:
    """And the learnable RAFT head's too, which starts as RAFT."""
    regressor = make_tiny(loss="raft", grid=grid, added_tokens=added_tokens)
    batch = batch_of(regressor)
    zero_shot = regressor.predictors(**prompts_of(regressor))["rail"]
    loss = regressor.train()(**batch)["loss"]
    torch.testing.assert_close(loss.detach(), (zero_shot - batch["targets"]) ** 2, rtol=0, atol=1e-12)
    loss.sum().backward()
    assert regressor.model.model.layers[0].mlp.up_proj.weight.grad.any()
    head = make_tiny(loss="head:raft-grid", grid=grid, added_tokens=added_tokens)
    torch.testing.assert_close(head(**batch)["loss"], loss, rtol=0, atol=1e-5)


@pytest.mark.parametrize("loss", ["raft", "ce", "head:mean"])
@pytest.mark.parametrize("training", [False, True])
def test_bidirectional_prompts_are_another_reading(make_tiny: MakeTiny, loss: str, training: bool) -> None:
    """What each reads is tested with the scores; here, that every path is told."""
    found = []
    for bidirectional in (False, True):
        regressor = make_tiny(loss=loss, bidirectional=bidirectional).train(training)
        found.append(regressor(**batch_of(regressor))["loss"])
    assert (found[0] - found[1]).abs().min() > 1e-6


@pytest.mark.parametrize("loss", ["raft", "log", "head:mean", "head:probabilities", "head:raft-grid"])
def test_a_half_precision_pass_leaves_losses_and_predictions_in_float32(make_tiny: MakeTiny, loss: str) -> None:
    """As the trainer's bf16 makes it: targets such as 4.75 and their squares are not bfloat16's."""
    regressor = make_tiny(**({**LOG, "loss": loss} if loss == "log" else {"loss": loss})).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = regressor(**batch_of(regressor))
    assert {value.dtype for value in found.values()} == {torch.float32}


# --- predictors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", [None, (1.0, 5.0)])
@pytest.mark.parametrize("grid", [("0:1:0.25", "0.00 0.25 0.50 0.75 1.00"), ("1,10,100,15", "1 10 100 15")])
def test_every_predictor_of_a_grid_is_on_the_datas_scale(
    make_tiny: MakeTiny, grid: tuple[str, str], bounds: tuple[float, float] | None
) -> None:
    regressor = make_tiny(grid=grid[0], bounds=bounds)
    numbers = grid[1].split()
    values = np.array(numbers, dtype=float)
    lower, upper = bounds or (0.0, 1.0)
    told = []
    expected: dict[str, list[float]] = {"rail": [], "rail_normalised": [], "mode": [], "median": [], "entropy": []}
    for text in TEXTS:
        p = probabilities(regressor, text, numbers)
        q = p / p.sum()
        by_name = {
            "rail": p @ values,
            "rail_normalised": q @ values,
            "mode": values[p.argmax()],
            "median": np.sort(values)[(q[values.argsort()].cumsum() < 0.5).sum()],
        }
        for name, number in by_name.items():
            expected[name].append(lower + (upper - lower) * number)
        expected["entropy"].append(-(q @ np.log(q)))
        told.append(p)
    found = regressor.predictors(**prompts_of(regressor))
    assert found.pop("probabilities").tolist() == [pytest.approx(p, abs=1e-9) for p in told]
    assert list(found) == list(expected)
    for name, numbers_found in found.items():
        assert numbers_found.tolist() == pytest.approx(expected[name], abs=1e-9)
        assert not numbers_found.requires_grad


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (LOG, {"rail", "entropy", "probabilities"}),  # of one number, neither normalised nor chosen
        ({"loss": "raft", "grid": "3"}, {"rail", "entropy", "probabilities"}),
        ({"loss": "head:raft-grid", "grid": "0:1:0.005"}, {"head", "entropy"}),  # too many to be told
        ({"loss": "head:mlp"}, {"head"}),
        ({"loss": "head:raft-grid"}, {"head", "entropy", "probabilities"}),
    ],
)
def test_one_number_and_heads_have_fewer_predictors(
    make_tiny: MakeTiny, settings: dict[str, Any], names: set[str]
) -> None:
    regressor = make_tiny(**settings)
    found = regressor.predictors(**prompts_of(regressor))
    assert set(found) == names
    assert regressor.regressor_config.predictor in found
    assert found.get("entropy", torch.zeros(3)).any() == (names > {"head"})


@pytest.mark.parametrize(
    ("settings", "reach"),
    [
        ({"grid": "1:5:1"}, (0, 5)),  # no probability on the grid at all
        ({"grid": "1:5:1", "normalised": True}, (1, 5)),
        ({"grid": "-2:-1:1"}, (-2, 0)),
        ({"grid": "-1:1:1"}, (-1, 1)),
        ({"grid": "9,0.5"}, (0, 9)),
        ({"grid": "1,2", "bounds": (1.0, 5.0)}, (1, 9)),
        (LOG, (1, 5)),
    ],
)
def test_averages_reach_from_nothing_to_all_on_the_greatest(
    make_tiny: MakeTiny, settings: dict[str, Any], reach: tuple[float, float]
) -> None:
    assert make_tiny(**settings).reach == reach


@pytest.mark.parametrize("settings", [{}, {"loss": "ce", "grid": "8:12:1"}, {"loss": "head:max"}, LOG])
def test_texts_are_predicted_alike_in_any_batch(make_tiny: MakeTiny, settings: dict[str, Any]) -> None:
    """In their order, by the predictor that is trained, and in evaluation mode."""
    regressor = make_tiny(**settings).train()
    texts = [*TEXTS, "so so", "good"]
    alone = [regressor.predict([text])[0] for text in texts]
    assert not regressor.training
    for batch_size in (1, 2, 5, 16):
        assert regressor.predict(texts, batch_size) == pytest.approx(alone, rel=1e-5)
    predictors = regressor.predictors(**prompts_of(regressor))
    assert alone[:3] == pytest.approx(predictors[regressor.regressor_config.predictor].tolist(), rel=1e-5)
    assert regressor.predict([]) == []


# --- what is trained, and how -----------------------------------------------------------------------------------------


def test_every_pass_is_intervened_on_with_the_prompts_length(make_tiny: MakeTiny) -> None:
    """Reading a grid, reading one string, and predicting; nothing is left on behind them."""
    regressor = make_tiny(loss="ce", grid="8:12:1")
    active: list[int] = []
    seen: list[list[int]] = []

    @contextmanager
    def intervening(length: int) -> Iterator[None]:
        active.append(length)
        yield
        active.pop()

    regressor.intervening = intervening
    regressor.model.register_forward_pre_hook(lambda *args: seen.append(list(active)))
    length = batch_of(regressor)["input_ids"].shape[1]
    regressor.train()(**batch_of(regressor))
    regressor.eval()(**batch_of(regressor))
    regressor.predictors(**prompts_of(regressor))
    assert seen == [[length]] * 3
    assert active == []


def test_what_is_trainable_has_one_name_each(make_tiny: MakeTiny) -> None:
    regressor = make_tiny(model={"tie_word_embeddings": True}, loss="head:mean")
    names = regressor.trainable_parameters()
    assert "model.model.embed_tokens.weight" in names
    assert "model.lm_head.weight" not in names
    assert len({id(parameter) for parameter in names.values()}) == len(names)
    regressor.model.requires_grad_(False)
    assert set(regressor.trainable_parameters()) == {"head.linear.weight", "head.linear.bias"}


@pytest.mark.parametrize("method", ["gradient_checkpointing_enable", "activation_checkpointing_enable"])
@pytest.mark.parametrize("settings", [{}, {"loss": "ce"}, {"loss": "head:mean"}])
def test_recomputing_changes_no_gradient(make_tiny: MakeTiny, method: str, settings: dict[str, Any]) -> None:
    regressor = make_tiny(**settings).train()
    layer = regressor.model.model.layers[0].mlp
    calls: list[None] = []
    layer.register_forward_pre_hook(lambda *args: calls.append(None))

    def gradient() -> torch.Tensor:
        calls.clear()
        return torch.autograd.grad(regressor(**batch_of(regressor))["loss"].sum(), layer.up_proj.weight)[0]

    plain = gradient()
    assert len(calls) == 1
    getattr(regressor, method)()
    torch.testing.assert_close(gradient(), plain, rtol=1e-9, atol=1e-9)
    assert len(calls) == 2


class Adapter(nn.Module):
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Any] = []

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any]) -> None:
        self.asked.append(gradient_checkpointing_kwargs)

    def save_pretrained(self, folder: Path, save_embedding_layers: bool) -> None:
        self.asked.append(save_embedding_layers)
        (folder / "adapter_config.json").touch()


def test_an_adapter_recomputes_under_its_own_interventions(make_tiny: MakeTiny) -> None:
    adapter = Adapter()
    regressor = make_tiny(adapter=adapter)
    regressor.gradient_checkpointing_enable({"preserve_rng_state": False})
    assert adapter.asked == [{"use_reentrant": False, "preserve_rng_state": False}]


# --- files ------------------------------------------------------------------------------------------------------------


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)).split("/")[0] for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_comes_back_as_it_was_saved(make_tiny: MakeTiny, tmp_path: Path, name: HeadName) -> None:
    settings = {"loss": f"head:{name}", "grid": "1,2", "added_tokens": "first" if name == "raft-all" else None}
    regressor = make_tiny(**settings)
    with torch.no_grad():
        for parameter in regressor.head.parameters():  # type: ignore[union-attr]
            parameter.add_(torch.randn_like(parameter))
    regressor.save_pretrained(tmp_path / "new")
    assert files_of(tmp_path / "new") == {"regressor_config.json", "head.safetensors", "README.md"}
    assert RegressorConfig.from_pretrained(tmp_path / "new") == regressor.regressor_config
    other = make_tiny(**settings)
    assert other.predict(TEXTS) != regressor.predict(TEXTS)
    other.load_own(tmp_path / "new")
    assert other.predict(TEXTS) == regressor.predict(TEXTS)


@torch.no_grad()
def test_a_model_tuned_whole_is_saved_with_its_tokens(make_tiny: MakeTiny, tmp_path: Path) -> None:
    regressor = make_tiny(tune="full", grid="0:5:2.5", added_tokens="average")
    regressor.model.lm_head.weight.mul_(2)
    regressor.save_pretrained(tmp_path)
    assert files_of(tmp_path) == {"regressor_config.json", "model", "README.md"}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    config = RegressorConfig.from_pretrained(tmp_path)
    template = make_template(config, tokenizer)
    other = Regressor(model, tokenizer, template, config.make_grid(model, tokenizer, template), config)
    assert other.predict(TEXTS) == pytest.approx(regressor.predict(TEXTS), rel=1e-12)
    other.load_own(tmp_path)  # there is none to read


@pytest.mark.parametrize(
    ("settings", "written", "number"),
    [
        ({}, " 2.5", 2.5),
        ({}, "2.5 stars", None),
        ({}, "nan", None),
        ({"added_tokens": "first"}, "<number 2.0>", 2.0),
        ({"grid": "1,2", "texts": ("bad", "good")}, " good", 2.0),
        ({"grid": "1,2", "texts": ("bad", "good")}, "2", None),
        ({"grid": "0:1:0.5", "bounds": (1.0, 5.0)}, "0.5", 3.0),
    ],
)
def test_an_answer_is_read_in_the_words_and_on_the_scale_of_the_grid(
    make_tiny: MakeTiny, settings: dict[str, Any], written: str, number: float | None
) -> None:
    assert make_tiny(**settings).parse(written) == number


@pytest.mark.parametrize("loss", ["ce", "raft", "head:raft-grid"])
def test_a_model_that_writes_100_predicts_100_and_not_the_numbers_that_begin_it(make_tiny: MakeTiny, loss: str) -> None:
    """Of all that can be written, three strings: their probabilities sum to 1 at most, whatever the loss."""
    writer = make_tiny(loss="ce", **NESTED).train()
    optimizer = torch.optim.Adam(writer.model.parameters(), lr=0.02)
    batch = {**batch_of(writer), "targets": torch.full((3,), 100.0)}
    for _ in range(30):
        optimizer.zero_grad()
        writer(**batch)["loss"].sum().backward()
        optimizer.step()
    regressor = make_tiny(loss=loss, **NESTED)
    regressor.model.load_state_dict(writer.model.state_dict())
    found = regressor.predictors(**prompts_of(regressor))
    names = ("head",) if "head" in found else ("rail", "rail_normalised", "mode", "median")
    for name in names:
        assert found[name].tolist() == pytest.approx([100] * 3, abs=5)
        assert (found[name] <= 100 + 1e-9).all()


@torch.no_grad()
def test_numbers_that_begin_others_have_no_end_in_regressors_of_before(make_tiny: MakeTiny, tmp_path: Path) -> None:
    """They predict as they were trained."""
    make_tiny(**NESTED).regressor_config.save_pretrained(tmp_path)
    path = tmp_path / "regressor_config.json"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "form"}))
    config = RegressorConfig.from_pretrained(tmp_path)
    assert config.form == 1
    regressor = make_tiny(**vars(config))
    p = np.array([log_prob(regressor, TEXTS[0], number).exp().item() for number in ("1", "10", "100")])
    rail = regressor.predictors(**prompts_of(regressor))["rail"][0].item()
    assert rail == pytest.approx(p @ regressor.grid.values.numpy(), abs=1e-9)


def test_an_adapter_is_saved_in_place_of_the_model(make_tiny: MakeTiny, tmp_path: Path) -> None:
    adapter = Adapter()
    make_tiny(adapter=adapter, tune="lora").save_pretrained(tmp_path)
    assert adapter.asked == [False]
    assert files_of(tmp_path) == {"regressor_config.json", "README.md", "adapter"}


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (None, "No such file"),
        (b"not tensors at all", "header"),
        ({"linear.weight": torch.zeros(1, 32)}, "Missing key.*linear.bias"),
        ({"bias": torch.zeros(()), "linear.weight": torch.zeros(1, 32)}, "Unexpected key"),
        ({"linear.weight": torch.zeros(1, 16), "linear.bias": torch.zeros(1)}, "size mismatch"),
    ],
)
def test_weights_that_are_not_the_heads_are_refused_in_one_line(
    make_tiny: MakeTiny, tmp_path: Path, written: bytes | dict[str, torch.Tensor] | None, reason: str
) -> None:
    path = tmp_path / "head.safetensors"
    if isinstance(written, bytes):
        path.write_bytes(written)
    elif written is not None:
        save_file(written, path)
    with pytest.raises(
        UserError, match=rf"head.safetensors does not hold the weights of head mean: .*{reason}"
    ) as caught:
        make_tiny(loss="head:mean").load_own(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_template_is_held_to_the_version_it_was_trained_with(tokenizer: PreTrainedTokenizerBase) -> None:
    for name in ("auto", "plain", "plain/1"):
        assert str(make_template(RegressorConfig(template=name), tokenizer)) == "plain/1"
    with pytest.raises(UserError, match="trained with prompt template plain/0, this version has plain/1"):
        make_template(RegressorConfig(template="plain/0"), tokenizer)
    with pytest.raises(UserError, match="needs a tokenizer with a chat template"):
        make_template(RegressorConfig(template="chat/1"), tokenizer)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{{ messages[0].content }}{% if enable_thinking is false %}<think></think>{% endif %}"
    with pytest.raises(UserError, match="with no thought between; got template chat-thinking"):
        make_template(RegressorConfig(template="chat-thinking/1"), tokenizer)
