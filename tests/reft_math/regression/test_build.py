"""Regressors on the embedded model: what is trained, what is saved, and interventions in the midst of a number."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from interventions import PrefixReftConfig, get_prefix_reft_model
from interventions.positions import intervention_mask
from reft_math.data.regression_rows import RegressionRow
from reft_math.errors import UserError
from reft_math.models import load_model, load_tokenizer
from reft_math.regression.batches import RegressionCollator, encode_rows
from reft_math.regression.build import load_base, load_regressor, make_regressor
from reft_math.regression.config import REGRESSOR_CONFIG, RegressorConfig
from reft_math.regression.regressor import Regressor
from reft_math.regression.scores import grid_log_probs

ROWS = [
    RegressionRow("a", "Input score: 5.25", 1.5),
    RegressionRow("b", "77", 6.0),
    RegressionRow("c", "A longer line, so that the two others are padded.", 8.7),
]
# The embedded model: 4 layers of width 128 with 384 in between, 86 tokens, the output embedding the input's.
LAYERS, WIDTH, INNER, TOKENS = 4, 128, 384, 86
ATTENTION, FEED_FORWARD = 4 * WIDTH * WIDTH, 3 * WIDTH * INNER
TRAINED = {
    "red": LAYERS * 2 * INNER,
    "bias": LAYERS * INNER,
    "loreft": LAYERS * (2 * 4 * WIDTH + 4),
    "lora": LAYERS * 8 * (4 * (WIDTH + WIDTH) + 3 * (WIDTH + INNER)),
    "full": TOKENS * WIDTH + LAYERS * (ATTENTION + FEED_FORWARD + 2 * WIDTH) + WIDTH,
}
TUNES = list(TRAINED)


def regressor_of(tune: str, **settings: Any) -> Regressor:
    """Of the embedded model; `make_regressor`'s own arguments where they are given, the rest is the config's."""
    where = {name: settings.pop(name) for name in ("site", "layers", "rank", "dropout") if name in settings}
    config = RegressorConfig(**{"tune": tune, "grid": "0:9:1", "base_model": "arithmetic", **settings})
    torch.manual_seed(0)
    model = load_model("arithmetic", random_seed=config.random_seed)
    return make_regressor(model, load_tokenizer("arithmetic"), config, **where).eval()


def changed(regressor: Regressor) -> Regressor:
    """Every trainable number moved."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in regressor.trainable_parameters().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return regressor


def batch_of(regressor: Regressor, rows: list[RegressionRow] = ROWS) -> dict[str, torch.Tensor]:
    encoded = encode_rows(rows, regressor.tokenizer, regressor.template)
    return RegressionCollator(int(regressor.tokenizer.pad_token_id))(encoded)


def predictions(regressor: Regressor) -> dict[str, list[float]]:
    batch = batch_of(regressor)
    found = regressor.predictors(batch["input_ids"], batch["attention_mask"])
    return {name: numbers.tolist() for name, numbers in found.items()}


# --- what is trained ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "of_head"), [("raft", 0), ("head:mlp", 64 * TOKENS + 64 + 64 + 1)])
@pytest.mark.parametrize("tune", TUNES)
def test_what_is_tuned_and_the_head_are_trained_and_nothing_else(tune: str, loss: str, of_head: int) -> None:
    regressor = regressor_of(tune, loss=loss)
    before = {name: value.clone() for name, value in regressor.state_dict().items()}
    trainable = regressor.trainable_parameters()
    assert sum(parameter.numel() for parameter in trainable.values()) == TRAINED[tune] + of_head
    assert sum(parameter.numel() for name, parameter in trainable.items() if name.startswith("head.")) == of_head
    changed(regressor.train())
    regressor(**batch_of(regressor))["loss"].sum().backward()
    assert all(parameter.grad is not None for parameter in trainable.values())
    places = {parameter.data_ptr() for parameter in trainable.values()}
    for name, value in regressor.state_dict().items():
        assert torch.equal(value, before[name]) == (value.data_ptr() not in places), name


def test_rank_layers_and_site_are_those_asked_for() -> None:
    for settings, expected in [
        ({"tune": "loreft", "rank": 2, "layers": "1"}, 2 * 2 * WIDTH + 2),
        ({"tune": "red", "layers": "0,2", "site": "attn_o"}, 2 * 2 * WIDTH),
        ({"tune": "lora", "rank": 1}, TRAINED["lora"] // 8),
    ]:
        trainable = regressor_of(**settings).trainable_parameters()
        assert sum(parameter.numel() for parameter in trainable.values()) == expected


@pytest.mark.parametrize("tune", TUNES)
def test_dropout_is_the_models_and_loras_and_in_training_only(tune: str) -> None:
    made = {dropout: changed(regressor_of(tune, dropout=dropout)) for dropout in (None, 0.1, 0.9)}

    def losses(dropout: float | None, training: bool) -> torch.Tensor:
        torch.manual_seed(1)
        return made[dropout].train(training)(**batch_of(made[dropout]))["loss"]

    for dropout in (0.1, 0.9):
        assert torch.equal(losses(dropout, False), losses(None, True))
        assert not torch.allclose(losses(dropout, True), losses(None, True))
    attention = made[0.9].model.get_decoder().layers[0].self_attn
    assert attention.attention_dropout == 0.9
    if tune == "lora":
        assert attention.q_proj.lora_dropout["default"].p == 0.9


@pytest.mark.parametrize("tune", [*TUNES, "none"])
def test_the_rows_of_added_tokens_are_trained_whatever_is_tuned(tune: str) -> None:
    """Numbers from 0.0 to 9.0, 19 in all; the base alone has nothing to train."""
    regressor = regressor_of(tune, grid="0:9:0.5", added_tokens="random").train()
    trainable = regressor.trainable_parameters()
    trained = sum(parameter.numel() for parameter in trainable.values())
    assert trained == (0 if tune == "none" else TRAINED[tune] + 19 * WIDTH)
    if tune not in ("none", "full"):
        regressor(**batch_of(regressor))["loss"].sum().backward()
        (rows,) = (parameter for name, parameter in trainable.items() if name.startswith("added_rows."))
        assert rows.grad.abs().sum(dim=1)[1:].min() > 0  # 0.0 counts for nothing in the sum


@pytest.mark.parametrize("tune", ["red", "lora"])
def test_regressors_of_before_have_their_added_tokens_at_their_start(tmp_path: Path, tune: str) -> None:
    regressor = changed(regressor_of(tune, grid="0:9:0.5", added_tokens="average", form=1))
    assert sum(parameter.numel() for parameter in regressor.trainable_parameters().values()) == TRAINED[tune]
    regressor.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    path = tmp_path / REGRESSOR_CONFIG
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "form"}))
    assert predictions(load_regressor(tmp_path)) == predictions(regressor)


# --- files ----------------------------------------------------------------------------------------------------------

MAKES = [
    {},
    {"loss": "head:mlp"},
    {"grid": "0:9:0.5", "added_tokens": "random"},
    {"random_seed": 3},
    {"grid": "0:9:0.5", "added_tokens": "first", "random_seed": 3, "loss": "head:raft-all"},
    {"grid": "1,2", "texts": ("Tom", "Ben"), "normalised": True, "bounds": (0.0, 5.0), "bidirectional": True},
]


@pytest.mark.parametrize("settings", MAKES, ids=lambda settings: ", ".join(map(str, settings)) or "as it comes")
@pytest.mark.parametrize("tune", TUNES)
def test_what_is_saved_and_loaded_predicts_the_same_to_the_last_bit(
    tmp_path: Path, tune: str, settings: dict[str, Any]
) -> None:
    start = regressor_of(tune, **settings)
    at_start = predictions(start)
    regressor = changed(start)
    expected = predictions(regressor)
    assert expected != at_start
    regressor.save_pretrained(tmp_path)
    del start, regressor
    loaded = load_regressor(tmp_path)
    assert predictions(loaded) == expected
    assert not loaded.training
    assert loaded.regressor_config.tune == tune
    by_name = dict(zip((row.id for row in ROWS), loaded.predict([row.text for row in ROWS]), strict=True))
    assert by_name == pytest.approx(
        dict(zip("abc", expected[loaded.regressor_config.predictor], strict=True)), rel=1e-5, abs=1e-6
    )


def test_the_configuration_comes_back_as_it_was(tmp_path: Path) -> None:
    for settings in MAKES:
        regressor = regressor_of("red", **settings)
        regressor.save_pretrained(tmp_path)
        assert load_regressor(tmp_path).regressor_config == regressor.regressor_config


def test_the_template_is_saved_with_its_version(tmp_path: Path) -> None:
    """Or a prompt reworded since would go unnoticed."""
    regressor_of("red").save_pretrained(tmp_path)
    assert json.loads((tmp_path / REGRESSOR_CONFIG).read_text())["template"] == "chat/1"


def without(name: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    return harm


def keep_first(path: Path) -> None:
    """One tensor of a file."""
    name, tensor = next(iter(load_file(path).items()))
    save_file({name: tensor, "other": torch.ones(10_000)}, path)


def holding(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def saying(**values: object) -> Callable[[Path], object]:
    """Settings put into the saved ones."""

    def harm(folder: Path) -> None:
        path = folder / REGRESSOR_CONFIG
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return harm


def spoiling(name: str) -> Callable[[Path], object]:
    """A NaN in the last tensor of a file."""

    def harm(folder: Path) -> None:
        tensors = load_file(folder / name)
        tensors[max(tensors)].view(-1)[-1] = torch.nan
        save_file(tensors, folder / name)

    return harm


@pytest.mark.parametrize(
    ("tune", "harm", "message"),
    [
        ("red", spoiling("head.safetensors"), "linear.weight is NaN or infinite"),
        ("red", spoiling("adapter/reft_model.safetensors"), ".scale is NaN or infinite"),
        ("lora", spoiling("adapter/adapter_model.safetensors"), "lora_B.weight is NaN or infinite"),
        ("red", without("."), "there is no folder"),
        ("red", without(REGRESSOR_CONFIG), "holds no regressor_config.json; was it saved by save_pretrained?"),
        ("red", holding(REGRESSOR_CONFIG, "{"), "is not a readable regressor config"),
        ("red", holding(REGRESSOR_CONFIG, "{}"), "is not a readable regressor config"),
        ("red", saying(nosuch=1), "is not a readable regressor config"),
        ("red", saying(loss="squares"), "loss must be one of raft, mbr, ce, log, head:logit"),
        ("red", saying(base_model="no/such"), "model 'no/such' must be 'arithmetic', a folder"),
        ("red", saying(template="chat/9"), "was trained with prompt template chat/9, this version has chat/1"),
        ("red", saying(loss="head:mlp"), "does not hold the weights of head mlp"),
        ("red", without("head.safetensors"), "does not hold the weights of head mean"),
        ("red", saying(loss="raft", added_tokens="zero"), "does not hold the weights of added tokens"),
        ("red", holding("head.safetensors", "no"), "does not hold the weights of head mean"),
        ("red", without("adapter"), "there is no folder"),
        ("full", without("model"), "a folder with a transformers checkpoint"),
        ("lora", without("adapter"), "adapter"),
        ("lora", holding("adapter/adapter_model.safetensors", "no"), "adapter"),
        ("lora", lambda folder: save_file({}, folder / "adapter/adapter_model.safetensors"), "missing or unknown"),
        ("lora", lambda folder: keep_first(folder / "adapter/adapter_model.safetensors"), "missing or unknown"),
        ("lora", holding("adapter/adapter_config.json", '{"peft_type": "XLORA"}'), "its peft_type is 'XLORA'"),
        ("red", saying(random_seed=2**64), "random_seed is a whole number from 0"),
        ("red", saying(grid="0:1e9:1e-9"), "a grid has at most 100,000 numbers"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tune: str,
    harm: Callable[[Path], object],
    message: str,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = tmp_path / "regressor"
    regressor_of(tune, loss="head:mean").save_pretrained(folder)
    harm(folder)
    with pytest.raises(UserError) as caught:
        load_regressor(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# --- scoring --------------------------------------------------------------------------------------------------------


def one_pass_a_string(
    regressor: Regressor, row: RegressionRow, positions: str = "all", end: tuple[int, ...] = ()
) -> torch.Tensor:
    """``log p(str(y)|x)`` of every number, by the adapter's own forward pass over prompt and string, no padding."""
    prompt = batch_of(regressor, [row])["input_ids"]
    is_hooked = hasattr(regressor.adapter, "intervening")
    log_probs = []
    for string in regressor.grid.token_ids:
        tokens = torch.cat([prompt, torch.tensor([[*string, *end]])], dim=1)
        inputs: dict[str, Any] = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        if is_hooked and positions != "all":
            place = torch.arange(tokens.shape[1])[None] - prompt.shape[1]
            inputs["intervention_mask"] = intervention_mask(place, positions)  # type: ignore[arg-type]
        forward = regressor.model if regressor.adapter is None else regressor.adapter
        steps = forward(**inputs).logits[0, prompt.shape[1] - 1 : -1].log_softmax(dim=-1)
        log_probs.append(steps.gather(-1, tokens[0, prompt.shape[1] :, None]).sum())
    return torch.stack(log_probs)


def at_positions(intervention: str, positions: str) -> Regressor:
    """A regressor whose interventions act on the prompt's columns, the number's or all."""
    torch.manual_seed(0)
    model, tokenizer = load_model("arithmetic").double(), load_tokenizer("arithmetic")
    made = make_regressor(model, tokenizer, RegressorConfig(grid="0:12:0.5", tune="none", base_model="arithmetic"))
    config = PrefixReftConfig(intervention=intervention, site="ffn_up", positions=positions)  # type: ignore[arg-type]
    adapter = get_prefix_reft_model(model, config)
    regressor = Regressor(
        model, tokenizer, made.template, made.grid, made.regressor_config, adapter, intervening=adapter.decoding
    )
    return changed(regressor.eval())


@pytest.mark.parametrize("positions", ["all", "solution", "generated", "prompt"])
@pytest.mark.parametrize("intervention", ["red", "loreft"])
@torch.no_grad()
def test_interventions_act_on_numbers_as_on_any_token_of_their_positions(intervention: str, positions: str) -> None:
    """Numbers of three and four tokens, scored side by side behind prompts padded on the left, in float64."""
    regressor = at_positions(intervention, positions)
    assert {len(string) for string in regressor.grid.token_ids} == {3, 4}
    batch = batch_of(regressor)
    assert not batch["attention_mask"].all()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with regressor.intervening(ids.shape[1]):
        log_probs = grid_log_probs(regressor.model, ids, mask, regressor.grid)
    expected = torch.stack([one_pass_a_string(regressor, row, positions) for row in ROWS])
    torch.testing.assert_close(log_probs, expected, rtol=1e-5, atol=1e-5)
    base = grid_log_probs(regressor.model, ids, mask, regressor.grid)
    assert (log_probs - base).abs().mean() > 0.1
    rail = expected.softmax(dim=-1) @ regressor.grid.values
    torch.testing.assert_close(regressor.predictors(ids, mask)["rail_normalised"], rail, rtol=1e-5, atol=0)


@pytest.mark.parametrize("tune", TUNES)
def test_training_by_cross_entropy_sees_what_is_tuned(tune: str) -> None:
    """The loss of each row is that of the string nearest to its target and the end, in a pass of its own."""
    regressor = changed(regressor_of(tune, loss="ce", grid="0:12:0.5"))
    end = (regressor.template.end_token_id(regressor.tokenizer),)
    nearest = [3, 12, 17]  # 1.5, 6.0, 8.5 for 8.7
    with torch.no_grad():
        expected = [
            -one_pass_a_string(regressor, row, end=end)[place] for row, place in zip(ROWS, nearest, strict=True)
        ]
        losses = regressor.train()(**batch_of(regressor))["loss"]
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-4, atol=1e-4)


# --- the start and the base -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", MAKES[:1] + MAKES[2:4], ids=["as it comes", "added tokens", "random start"])
@pytest.mark.parametrize("tune", ["red", "lora", "full"])
def test_raft_starts_at_the_squared_error_of_zero_shot_rail(tune: str, settings: dict[str, Any]) -> None:
    """To the last bit, by every predictor."""
    regressor = regressor_of(tune, **settings)
    base = load_base(regressor.regressor_config)
    assert predictions(regressor) == predictions(base)
    batch = batch_of(regressor)
    rail = base.predictors(batch["input_ids"], batch["attention_mask"])["rail"]
    assert torch.equal(regressor.train()(**batch)["loss"], (rail - batch["targets"]) ** 2)


@pytest.mark.parametrize("tune", TUNES)
def test_the_base_of_a_tuned_regressor_has_nothing_of_its_training(tmp_path: Path, tune: str) -> None:
    """Over the same grid; a head, which was trained from nothing, is not the base's."""
    settings = {"grid": "0:9:0.5", "added_tokens": "average", "random_seed": 5, "loss": "head:mean"}
    changed(regressor_of(tune, **settings)).save_pretrained(tmp_path)
    base = load_base(load_regressor(tmp_path).regressor_config)
    untouched = regressor_of("none", **{**settings, "loss": "raft"})
    assert predictions(base) == predictions(untouched)
    assert base.grid.token_ids == untouched.grid.token_ids
    assert base.head is None
    assert not base.trainable_parameters()
    assert not base.training


def test_the_base_keeps_the_loss_of_one_token() -> None:
    config = regressor_of("red", loss="log", grid="1", bounds=(0.0, 9.0)).regressor_config
    base = load_base(config)
    assert base.regressor_config == replace(config, tune="none")
    assert list(predictions(base)) == ["rail", "entropy", "probabilities"]


def test_a_whole_model_in_bfloat16_is_warned_of() -> None:
    """A step of the default rate, 1e-5, moves no weight of 0.01."""
    weight = torch.tensor(0.01, dtype=torch.bfloat16)
    assert weight + 1e-5 == weight
    model = load_model("arithmetic").bfloat16()
    with pytest.warns(UserWarning, match="lost to rounding in bfloat16; --dtype float32 with --mixed-precision bf16"):
        make_regressor(model, load_tokenizer("arithmetic"), RegressorConfig(grid="0:9:1", tune="full"))


def test_quantised_weights_are_not_tuned() -> None:
    model = load_model("arithmetic")
    model.is_quantized = True
    with pytest.raises(UserError, match="quantised weights cannot be tuned; take --tune red"):
        make_regressor(model, load_tokenizer("arithmetic"), RegressorConfig(grid="0:9:1", tune="full"))
