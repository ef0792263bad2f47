"""Nothing that stands in a base's or an adapter's files is run or imported, and no path in them leaves its folder.

Most of these are transformers' and peft's own guards; a version without them does not pass.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from reft_math.data.templates import encode_prompt, get_template
from reft_math.errors import UserError
from reft_math.models import load_model, load_tokenizer

Harm = Callable[[Path], object]


class Pickled:
    """Runs a command where a pickle of it is read without care."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.fixture
def base(tiny_base: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    lora = get_peft_model(load_model(str(base)), LoraConfig(target_modules=["q_proj"]))
    lora.peft_config["default"].base_model_name_or_path = str(base)
    lora.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def saying(name: str, **values: object) -> Harm:
    """Settings put into the saved ones."""

    def harm(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return harm


def pickle_for_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**weights, "more": Pickled("touch ran")}, folder / "pytorch_model.bin")


def own_generation(folder: Path) -> None:
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text("open('ran', 'w')")


def template(text: str) -> Harm:
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (own_generation, None),
        (saying("config.json", auto_map={"AutoModelForCausalLM": "own.Model"}, trust_remote_code=True), None),
        (
            saying("tokenizer_config.json", auto_map={"AutoTokenizer": ["own.T", None]}, tokenizer_class="os.system"),
            "contains custom code",
        ),
        (saying("generation_config.json", custom_generate="own/generate"), None),
        (pickle_for_weights, "must be 'arithmetic', a folder with a transformers checkpoint"),
        (saying("config.json", transformers_weights="../secret.safetensors"), "inside the model directory"),
        (saying("config.json", quantization_config={"quant_method": "own.Quantizer"}), None),
        (template("{{ cycler.__init__.__globals__.os.system('touch ran') }}"), r"chat template fails \(SecurityError"),
        (template("{{ '{0.__init__.__globals__}'.format(messages) }}"), r"chat template fails \(SecurityError"),
        (template("{% include '/etc/passwd' %}"), "chat template fails"),
        (template("{% for _ in range(10 ** 9) %}a{% endfor %}"), "chat template fails .*Range too big"),
        (template("{{ raise_exception('a\x1b[2J\nb') }}"), r"chat template fails \(TemplateError: a\\x1b\[2J b\)"),
    ],
)
def test_a_bases_own_code_is_not_run(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Harm, message: str | None
) -> None:
    shutil.copy(base / "model.safetensors", tmp_path / "secret.safetensors")
    (base / "own.py").write_text("open('ran', 'w')")
    harm(base)
    monkeypatch.chdir(tmp_path)

    def load() -> None:
        tokenizer = load_tokenizer(str(base))
        encode_prompt(get_template("auto", tokenizer), "How many?", tokenizer)
        load_model(str(base))

    if message is None:
        load()
    else:
        with pytest.raises(UserError, match=message):
            load()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (saying("adapter_config.json", megatron_config={"a": 1}, megatron_core="own_module"), "does not start with a"),
        (saying("adapter_config.json", auto_mapping={"base_model_class": "M", "parent_library": "own_module"}), None),
        (lambda folder: torch.save({"a": Pickled("touch ran")}, folder / "adapter_model.bin"), None),
    ],
)
def test_a_peft_adapters_own_code_is_not_run(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Harm, message: str | None
) -> None:
    (tmp_path / "own_module.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    harm(adapter)
    if message is None:
        load_model(str(adapter))
    else:
        with pytest.raises(UserError, match=message):
            load_model(str(adapter))
    assert "own_module" not in sys.modules
    assert not (tmp_path / "ran").exists()
