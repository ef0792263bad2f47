"""How bases are loaded: quantised, spread over devices, with another attention."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from interventions import PrefixReftConfig, PrefixReftModel, get_prefix_reft_model
from interventions.sites import running_device
from reft_math.commands.options.loading import LoadingOptions
from reft_math.data.arithmetic.tokenizer import build_tokenizer
from reft_math.data.templates import get_template
from reft_math.decoding.completions import CompletionSettings, complete
from reft_math.errors import UserError
from reft_math.models import load_model, load_tokenizer
from reft_math.models.base import check_vocabulary, load_skeleton

TinyModel = Callable[..., PreTrainedModel]
TOKENS = torch.arange(4, 12)[None]
HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
SMALL = "--train-size 16 --batch-size 4 --epochs 1 --eval-size 2 --eval-batch-size 2 --max-new-tokens 8 --gate tokens:3"


def moved(model: PreTrainedModel) -> PrefixReftModel:
    torch.manual_seed(0)
    reft_model = get_prefix_reft_model(model, PrefixReftConfig(intervention="loreft", site="block"))
    with torch.no_grad():
        for parameter in reft_model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return reft_model


@pytest.mark.parametrize(
    ("options", "dtype", "settings"),
    [
        ({"quantization": "4bit"}, "bfloat16", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
        ({"quantization": "8bit"}, "bfloat16", {"load_in_8bit": True}),
        ({"quantization": "4bit", "dtype": "float16"}, "float16", {"load_in_4bit": True}),
    ],
)
def test_quantisation_goes_to_transformers_and_the_model_stays_where_it_put_it(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], dtype: str, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    asked: dict[str, Any] = {}
    plain = load_model("arithmetic")

    def from_pretrained(source: str, **kwargs: Any) -> tuple[PreTrainedModel, dict[str, set[str]]]:
        asked.update(kwargs)
        return plain, {"missing_keys": set()}

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    monkeypatch.setattr(plain, "to", lambda *args, **kwargs: pytest.fail("moved"))
    load_model("arithmetic", loading=LoadingOptions(**options))
    config = asked["quantization_config"]
    assert {name: getattr(config, name) for name in settings} == settings
    assert config.bnb_4bit_compute_dtype == getattr(torch, dtype)
    assert asked["dtype"] == dtype
    assert asked["device_map"] == {"": torch.device("cpu")}


def test_quantisation_without_bitsandbytes_is_said_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--quantization 4bit needs the package bitsandbytes.*uv sync --extra"):
        LoadingOptions(quantization="4bit")


@pytest.mark.skipif(not HAS_BITSANDBYTES, reason="bitsandbytes is not installed (uv sync --extra quantization)")
@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_quantised_base_trains_and_its_adapter_decodes(
    call: Callable[[str], None], tmp_path: Path, bits: str
) -> None:
    call(f"train/prefix_reft.py --quantization {bits} {SMALL} --output-dir {tmp_path}/run")
    call(
        f"eval/arithmetic.py --quantization {bits} --adapter {tmp_path}/run/adapter --gate kl:1 --limit 2"
        f" --max-new-tokens 8 --output-dir {tmp_path}/evaluation"
    )
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["config"]["quantization"] == bits
    assert results["bias_norm"]["achieved"] > 0
    model = load_model("arithmetic", loading=LoadingOptions(quantization=bits))  # type: ignore[arg-type]
    linear = model.get_submodule("model.layers.0.mlp.up_proj")
    assert type(linear) is not nn.Linear
    assert linear.weight.dtype in (torch.int8, torch.uint8)
    # What is read before training leaves gradients be.
    with torch.no_grad():
        model(TOKENS)
    reft_model = moved(model)
    reft_model(TOKENS).logits.float().logsumexp(dim=-1).sum().backward()
    assert all(bias.grad.abs().sum() > 0 for bias in reft_model.biases().values())


@pytest.mark.parametrize("offload", [cpu_offload, disk_offload])
def test_interventions_lie_where_their_module_calculates_not_where_its_weights_wait(
    tmp_path: Path, offload: Callable[..., nn.Module]
) -> None:
    model = load_model("arithmetic")
    whole = moved(model)
    expected, drawn = whole(TOKENS).logits, whole.generate(TOKENS, gate="kl:1", max_new_tokens=8)
    whole.unload()
    offload(model, *([str(tmp_path)] if offload is disk_offload else []), execution_device=torch.device("cpu"))
    layer = model.model.layers[0]
    assert {parameter.device.type for parameter in layer.parameters()} == {"meta"}
    assert running_device(layer) == torch.device("cpu")
    reft_model = moved(model)
    assert {parameter.device.type for parameter in reft_model.parameters()} == {"cpu"}
    assert torch.equal(reft_model(TOKENS).logits, expected)
    assert torch.equal(reft_model.generate(TOKENS, gate="kl:1", max_new_tokens=8), drawn)
    reft_model(TOKENS).logits.logsumexp(dim=-1).sum().backward()
    assert all(bias.grad is not None for bias in reft_model.biases().values())


def test_a_model_that_is_spread_says_so_to_trainers() -> None:
    reft_model = moved(load_model("arithmetic"))
    assert not hasattr(reft_model, "hf_device_map")
    reft_model.model.hf_device_map = {"model": 0, "lm_head": 1}
    assert reft_model.hf_device_map == {"model": 0, "lm_head": 1}


def test_a_device_map_is_accelerates_to_fill(call: Callable[[str], None], tmp_path: Path) -> None:
    call(f"train/prefix_reft.py --device-map auto {SMALL} --output-dir {tmp_path}")
    assert json.loads((tmp_path / "results.json").read_text())["config"]["device_map"] == "auto"


def test_a_device_map_is_for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--device-map is made by one process; run it without torchrun"):
        LoadingOptions(device_map="auto")


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_attention_is_the_one_asked_for_and_gates_decode_alike(name: str) -> None:
    model = load_model("arithmetic", loading=LoadingOptions(attn_implementation=name))  # type: ignore[arg-type]
    assert model.config._attn_implementation == name
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.long), TOKENS], dim=1)
    mask = (torch.arange(10) >= 2).long()[None]
    alone = moved(load_model("arithmetic")).generate(TOKENS, gate="kl:1", max_new_tokens=8)
    left_padded = moved(model).generate(padded, attention_mask=mask, gate="kl:1", max_new_tokens=8)
    assert torch.equal(left_padded[:, 2:], alone)


def test_an_attention_that_is_not_installed_is_one_line() -> None:
    assert importlib.util.find_spec("flash_attn") is None
    with pytest.raises(UserError, match=r"model 'arithmetic' must be .*[Ff]lash"):
        load_model("arithmetic", loading=LoadingOptions(attn_implementation="flash_attention_2"))


def test_random_weights_are_drawn_whole() -> None:
    with pytest.raises(UserError, match="random weights are drawn whole, on one device"):
        load_model("arithmetic", loading=LoadingOptions(device_map="auto"), random_seed=0)


@pytest.mark.parametrize(
    ("settings", "mistake"),
    [
        ("{", "must have readable settings"),
        ("[1]", "must have readable settings"),
        ("{}", "must name its base"),
        ('{"base_model_name_or_path": 3}', "must name its base"),
        ('{"base_model_name_or_path": "a"}', "must be LORA, for others may load further files; it is None"),
        ('{"base_model_name_or_path": "a", "peft_type": "XLORA", "adapters": {"b": "c/d"}}', "it is 'XLORA'"),
    ],
)
def test_a_peft_adapter_without_readable_settings_is_one_line(tmp_path: Path, settings: str, mistake: str) -> None:
    (tmp_path / "adapter_config.json").write_text(settings)
    with pytest.raises(UserError, match=mistake):
        load_model(str(tmp_path))


def test_a_peft_adapter_on_itself_is_one_line(tmp_path: Path) -> None:
    own = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(own))
    with pytest.raises(UserError, match=r"must be on a plain model; its base .* is an adapter, too"):
        load_tokenizer(str(tmp_path))


def test_a_peft_adapter_without_some_of_its_weights_is_no_base_in_disguise(tiny_base: str, tmp_path: Path) -> None:
    """Where they are missing, peft draws them, B as zeros: the base would stand in the table as its adapter."""
    lora = get_peft_model(load_model(tiny_base), LoraConfig(target_modules=["q_proj"]))
    lora.peft_config["default"].base_model_name_or_path = tiny_base
    lora.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    for odd in (
        dict(list(tensors.items())[1:]),
        {**tensors, "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.ones(8, 32)},
    ):
        save_file(odd, path)
        with pytest.raises(UserError, match="must hold the weights that its settings ask for; missing or unknown"):
            load_model(str(tmp_path))
    save_file(tensors, path)
    load_model(str(tmp_path))


def edited(folder: Path, name: str, **values: object) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "a folder with a transformers checkpoint"),
        (lambda folder: edited(folder, "config.json", hidden_size="wide"), "a folder with a transformers checkpoint"),
        (lambda folder: edited(folder, "config.json", hidden_act="step"), "a folder with a transformers checkpoint"),
        (lambda folder: edited(folder, "tokenizer_config.json", model_max_length="a"), "transformers checkpoint"),
        (
            lambda folder: edited(folder, "tokenizer_config.json", eos_token=None, pad_token=None),
            "must name a token for padding or the end of sequence",
        ),
        (
            lambda folder: (folder / "tokenizer.json").write_text('{"model": 3}'),
            "a folder with a transformers checkpoint",
        ),
        # Text is begun with a token that is not listed: a panic in Rust, at the first text.
        (
            lambda folder: edited(
                folder,
                "tokenizer.json",
                post_processor={
                    "type": "TemplateProcessing",
                    **{key: [{"SpecialToken": {"id": "<gone>", "type_id": 0}}] for key in ("single", "pair")},
                    "special_tokens": {},
                },
            ),
            "a folder with a transformers checkpoint",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64),
            "a folder with a transformers checkpoint",
        ),
        (
            lambda folder: save_file(
                {"model.norm.weight": torch.ones(32), "other": torch.ones(10_000)},
                folder / "model.safetensors",
                {"format": "pt"},
            ),
            r"must have all of its weights; \d+ are missing, such as lm_head\.weight",
        ),
        (
            lambda folder: (
                (folder / "model.safetensors").rename(folder.parent / "model.safetensors"),
                (folder / "model.safetensors.index.json").write_text(
                    json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "../model.safetensors"}})
                ),
            ),
            r"must name files of its own folder; it names '\.\./model\.safetensors'",
        ),
    ],
)
def test_a_damaged_or_hostile_base_is_one_line(
    tiny_base: str, tmp_path: Path, harm: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    harm(folder)

    def load() -> None:
        load_tokenizer(str(folder))
        load_model(str(folder))

    with pytest.raises(UserError, match=message):
        load()


def test_a_checkpoints_own_code_is_neither_run_nor_asked_about(
    tiny_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model", "AutoTokenizer": ["own.Tokenizer", None]}
    edited(folder, "config.json", model_type="own", auto_map=own)
    edited(folder, "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=own)
    monkeypatch.setattr("builtins.input", lambda text: pytest.fail(text))
    for load in (load_model, load_tokenizer, load_skeleton):
        with pytest.raises(UserError, match="custom code"):
            load(str(folder))
    assert not (tmp_path / "ran").exists()


def test_a_peft_adapter_whose_weights_are_not_finite_is_refused(tmp_path: Path) -> None:
    model = get_peft_model(load_model("arithmetic"), LoraConfig(target_modules=["q_proj"]))
    model.peft_config["default"].base_model_name_or_path = "arithmetic"
    next(value for value in model.parameters() if value.requires_grad).data[0, 0] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"peft adapter .* must hold finite parameters; .*lora_A.* is NaN or infinite"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(("family", "is_learnt"), [("gpt2", True), ("opt", True), ("llama", False)])
def test_a_text_beyond_learnt_positions_is_one_line(tmp_path: Path, family: str, is_learnt: bool) -> None:
    """In whatever form it comes; a model that calculates its positions reads on."""
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(family, **sizes, max_position_embeddings=8, eos_token_id=2, pad_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model, ids = load_model(str(tmp_path)), torch.full((2, 9), 5)
    assert model(input_ids=ids[:, :8]).logits.shape == (2, 8, 20)
    settings = {"eos_token_id": None, "max_new_tokens": 6}
    for call in (
        lambda: model(ids),
        lambda: model(input_ids=ids, position_ids=torch.arange(9)[None]),
        lambda: model.generate(ids[:, :5], attention_mask=torch.ones(2, 5), **settings),
    ):
        if not is_learnt:
            call()
        else:
            with pytest.raises(UserError, match=r"no more tokens than the model has positions; got token 9 of 8: "):
                call()


# --- vocabulary and tokenizer ------------------------------------------------------------------------------------


def test_embeddings_may_be_more_than_tokens_and_lack_added_ones_that_no_text_has(tiny_model: TinyModel) -> None:
    """Qwen pads its embeddings; Gemma 3's tokenizer has a token for images that its text models do not."""
    tokenizer = build_tokenizer()
    template, size = get_template("chat", tokenizer), len(tokenizer)
    check_vocabulary(tiny_model(vocab_size=size + 20), tokenizer, template)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    check_vocabulary(tiny_model(vocab_size=size), tokenizer, template)
    for name, uses in (("pad_token", "chat"), ("eos_token", "plain")):
        other = copy.deepcopy(tokenizer)
        setattr(other, name, "<image>")
        with pytest.raises(UserError, match=rf"it has {size}, and the tokenizer uses token {size}"):
            check_vocabulary(tiny_model(vocab_size=size), other, get_template(uses, other))


@pytest.mark.parametrize("line", ["train/prefix_reft.py", "train/lora.py", "train/raft.py", "eval/arithmetic.py"])
def test_a_tokenizer_with_more_tokens_than_the_model_is_refused_before_anything_is_written(
    call: Callable[[str], None],
    tiny_model: TinyModel,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    line: str,
) -> None:
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path / "base")
    tiny_model(vocab_size=len(tokenizer) - 10).save_pretrained(tmp_path / "base")
    with pytest.raises(SystemExit):
        call(f"{line} --model {tmp_path}/base --output-dir {tmp_path}/run")
    assert "error: the model must have an embedding for each token of its tokenizer" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_embeddings_beyond_the_tokenizer_count_as_tokens_that_say_nothing(tiny_model: TinyModel) -> None:
    """The divergence is over all of them; one that is drawn adds no text."""
    tokenizer = build_tokenizer()
    size = len(tokenizer)
    model = tiny_model(vocab_size=size + 20)
    with torch.no_grad():  # the logits of what lies beyond are larger by far
        model.lm_head.weight[size:] *= 20
    reft_model = moved(model)
    decoding = CompletionSettings(tokenizer, get_template("chat", tokenizer), [2], max_new_tokens=6)
    generate = partial(reft_model.generate, gate="kl:inf")
    rows = complete(["1+1?", "2+2?"], None, generate=generate, decoding=decoding, device=model.device)
    assert all(math.isfinite(row["cumulative_kl"]) and row["cumulative_kl"] > 0.1 for row in rows)
    assert all((row["completion"], row["num_tokens"]) == ("", 6) for row in rows)
