"""LoRA adapters of every kind that peft saves, against peft's own loading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from reft_math.commands.options.loading import LoadingOptions
from reft_math.errors import UserError
from reft_math.models import load_model

TOKENS = torch.arange(4, 12)[None]


def save_lora(folder: Path, base: str, **settings: Any) -> None:
    """A random adapter of a base, as peft saves it."""
    torch.manual_seed(0)
    lora = get_peft_model(load_model(base), LoraConfig(**{"target_modules": ["q_proj"], **settings}))
    lora.peft_config["default"].base_model_name_or_path = base
    with torch.no_grad():
        for parameter in lora.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    lora.save_pretrained(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_dora": True},
        {"trainable_token_indices": [5, 6, 7]},
        {"use_dora": True, "trainable_token_indices": {"embed_tokens": [5]}},
        {"modules_to_save": ["embed_tokens", "norm"], "use_rslora": True, "lora_bias": True},
        {"target_modules": ["embed_tokens", "lm_head", "up_proj"], "rank_pattern": {"up_proj": 3}},
    ],
)
def test_the_logits_are_pefts_own(tiny_base: str, tmp_path: Path, settings: dict[str, Any], dtype: str) -> None:
    save_lora(tmp_path, tiny_base, **settings)
    loading = LoadingOptions(dtype=dtype)
    base = load_model(tiny_base, None, loading)
    with torch.no_grad():
        plain, ours = base(TOKENS).logits, load_model(str(tmp_path), None, loading)(TOKENS).logits
        theirs = PeftModel.from_pretrained(base, str(tmp_path)).eval()(TOKENS).logits
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, plain)


def with_tokens(count: int, folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("embed_tokens.weight"))
    save_file({**tensors, name: torch.ones(count, tensors[name].shape[1])}, path)


def saying(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def without(part: str, folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if part not in name}, path)


@pytest.mark.parametrize(
    ("settings", "spoil", "message"),
    [
        ({}, lambda folder: saying(folder, alora_invocation_tokens=[5]), "is aLoRA, .*that is not supported"),
        ({}, lambda folder: saying(folder, layer_replication=[[0, 2]]), r"repeated \(layer_replication\)"),
        (
            {"modules_to_save": ["embed_tokens"]},
            lambda folder: with_tokens(90, folder),
            r"has embeddings for 90 tokens, and its base .* for 86: resize",
        ),
        (
            {"trainable_token_indices": [5]},
            lambda folder: saying(folder, trainable_token_indices=[86]),
            "trains token 86, and its base .* has embeddings for 86 tokens",
        ),
        ({"trainable_token_indices": [5]}, lambda folder: without("token_adapter", folder), "must hold the weights"),
        ({"modules_to_save": ["norm"]}, lambda folder: without("norm", folder), "must hold the weights that"),
        ({"use_dora": True}, lambda folder: without("magnitude", folder), "missing or unknown: .*magnitude"),
        ({}, lambda folder: saying(folder, r="many"), "does not fit its base"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(
    tiny_base: str, tmp_path: Path, settings: dict[str, Any], spoil: Any, message: str
) -> None:
    save_lora(tmp_path, tiny_base, **settings)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        load_model(str(tmp_path))
