from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import pyvene
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from interventions import PrefixReftConfig, PrefixReftModel, get_prefix_reft_model
from reft_math.errors import UserError

TOKENS = torch.arange(3, 11)[None]

LOAD_WITH_STOCK_CLASSES = """
import sys, torch, pyreft, pyvene, interventions
from transformers import AutoModelForCausalLM
tokens = torch.arange(3, 11)[None]
for folder in sys.argv[1:]:
    for load in (pyvene.IntervenableModel.load, pyreft.ReftModel.load):
        stock = load(folder + "/adapter", AutoModelForCausalLM.from_pretrained(folder + "/base").eval())
        assert type(stock) in (pyvene.IntervenableModel, pyreft.ReftModel)
        with torch.no_grad():
            _, output = stock({"input_ids": tokens}, unit_locations={"base": list(range(8))})
        assert torch.equal(output.logits, torch.load(folder + "/logits.pt")), (folder, load)
        print("equal")
"""


def randomised(model: PreTrainedModel, **config: object) -> PrefixReftModel:
    reft_model = get_prefix_reft_model(model, PrefixReftConfig(**config))  # type: ignore[arg-type]
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in reft_model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return reft_model


@pytest.mark.slow
def test_a_fresh_process_loads_folders_with_plain_pyvene_and_pyreft_to_the_last_bit(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    configs: dict[str, dict[str, object]] = {
        "Llama": {"site": "ffn_up"},
        "Qwen3": {"intervention": "loreft", "site": "attn_q", "rank": 3, "layers": "0,2"},
        "Gemma3": {"intervention": "loreft", "site": "block"},
    }
    for family, config in configs.items():
        reft_model = randomised(tiny_model(family), **config)
        (tmp_path / family).mkdir()
        with torch.no_grad():
            torch.save(reft_model(TOKENS).logits, tmp_path / family / "logits.pt")
        reft_model.save_pretrained(tmp_path / family / "adapter")
        reft_model.unload().save_pretrained(tmp_path / family / "base")
    folders = [str(tmp_path / family) for family in configs]
    done = subprocess.run(
        [sys.executable, "-c", LOAD_WITH_STOCK_CLASSES, *folders], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-6:] == ["equal"] * 6  # pyvene itself prints a line


@pytest.mark.parametrize(
    ("family", "site"),
    [
        ("Phi3", "model.layers.{layer}.mlp.gate_up_proj"),
        ("OPT", "model.decoder.layers.{layer}.self_attn.q_proj"),
        ("OPT", "block"),
    ],
)
def test_paths_come_back_here_and_in_pyvene_once_it_has_heard_of_the_class(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, site: str
) -> None:
    model = tiny_model(family, **({"word_embed_proj_dim": 32} if family == "OPT" else {}))
    reft_model = randomised(model, site=site, layers="0,2")
    logits = reft_model(TOKENS).logits
    reft_model.save_pretrained(tmp_path)
    reft_model.unload()
    assert not torch.equal(model(TOKENS).logits, logits)

    loaded = PrefixReftModel.from_pretrained(tmp_path, model)
    assert loaded.prefix_config.site == site
    assert torch.equal(loaded(TOKENS).logits, logits)
    loaded.unload()

    monkeypatch.setitem(pyvene.type_to_dimension_mapping, type(model), {})
    stock = pyvene.IntervenableModel.load(str(tmp_path), model)
    assert torch.equal(stock({"input_ids": TOKENS}, unit_locations={"base": list(range(8))})[1].logits, logits)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"intervention": "bias", "site": "block"},
        {"intervention": "loreft", "site": "block", "rank": 2, "layers": "1"},
    ],
)
def test_from_pretrained_gives_the_same_model(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path, config: dict[str, object]
) -> None:
    reft_model = randomised(tiny_model(), **config)
    reft_model.save_pretrained(tmp_path)
    loaded = PrefixReftModel.from_pretrained(tmp_path, tiny_model())
    assert torch.equal(loaded(TOKENS).logits, reft_model(TOKENS).logits)
    assert loaded.prefix_config == reft_model.prefix_config


def test_an_adapter_for_another_width_is_refused(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    randomised(tiny_model(), base_model="small").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"ffn_up of width 48 \(base small\), the model's is 64"):
        PrefixReftModel.from_pretrained(tmp_path, tiny_model(intermediate_size=64))


def test_an_adapter_for_more_layers_is_refused(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    randomised(tiny_model()).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"layers must lie in 0-1.*got 2"):
        PrefixReftModel.from_pretrained(tmp_path, tiny_model(num_hidden_layers=2))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_parameters_that_are_not_finite_are_neither_loaded_nor_saved(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path, number: float
) -> None:
    reft_model = randomised(tiny_model())
    reft_model.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "reft_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.startswith("layer_1_") and name.endswith(".bias"))
    tensors[name][3] = number
    save_file(tensors, path)
    message = re.escape(f"{name} is NaN or infinite")
    with pytest.raises(UserError, match=message):
        PrefixReftModel.from_pretrained(tmp_path / "adapter", tiny_model())
    reft_model.biases()[1].data[3] = number
    with pytest.raises(UserError, match=message):
        reft_model.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_missing_parameters_are_refused(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    randomised(tiny_model()).save_pretrained(tmp_path)
    path = tmp_path / "reft_model.safetensors"
    tensors = load_file(path)
    del tensors[next(iter(tensors))]
    save_file(tensors, path)
    with pytest.raises(UserError, match="does not hold this adapter's parameters"):
        PrefixReftModel.from_pretrained(tmp_path, tiny_model())


def test_options_among_the_parameters_are_refused(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    """They would act against what the configuration says."""
    randomised(tiny_model(), intervention="loreft", site="block").save_pretrained(tmp_path)
    path = tmp_path / "reft_model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors)).split(".")[0] + ".options"
    options = torch.tensor(list(b'{"act_fn": "relu", "dropout": 0.0}'), dtype=torch.uint8)
    save_file({**tensors, name: options}, path)
    with pytest.raises(UserError, match=r"\.options must be of floating numbers; it is torch\.uint8"):
        PrefixReftModel.from_pretrained(tmp_path, tiny_model())


def test_a_folder_without_adapter_is_refused(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no reft_config\.json; was it saved by save_pretrained"):
        PrefixReftModel.from_pretrained(tmp_path, tiny_model())
    randomised(tiny_model()).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"holds no reft_config\.json; did you mean .*/adapter\?"):
        PrefixReftModel.from_pretrained(tmp_path, tiny_model())
    with pytest.raises(UserError, match=r"there is no folder .*/nothing$"):
        PrefixReftModel.from_pretrained(tmp_path / "nothing", tiny_model())


def test_a_hub_id_out_of_reach_is_refused(
    tiny_model: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="there is no folder nobody/nothing, and no such repository within reach"):
        PrefixReftModel.from_pretrained("nobody/nothing", tiny_model())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.full((48,), torch.nan), "is NaN or infinite"),
        (torch.ones(48, dtype=torch.int64), "must be of floating numbers"),
        (torch.ones(47), "size mismatch"),
    ],
)
def test_parameters_that_would_give_nonsense_are_refused(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path, value: torch.Tensor, message: str
) -> None:
    randomised(tiny_model()).save_pretrained(tmp_path)
    path = tmp_path / "reft_model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, min(tensors): value}, path)
    with pytest.raises(UserError, match=message):
        PrefixReftModel.from_pretrained(tmp_path, tiny_model())


def test_no_class_that_a_folder_names_is_imported(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    """pyvene's own loader would: `load` is ours."""
    reft_model = randomised(tiny_model())
    reft_model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "intervention_types": ["<class 'antigravity.fly'>"] * 3}))
    for load in (PrefixReftModel.load, PrefixReftModel.from_pretrained):
        loaded = load(str(tmp_path), tiny_model())
        assert torch.equal(loaded(TOKENS).logits, reft_model(TOKENS).logits)
    assert "antigravity" not in sys.modules
