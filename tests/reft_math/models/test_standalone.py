"""An adapter's interventions, read without its base: those that it has on its base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gated_batches import TinyModel, randomised
from safetensors.torch import load_file, save_file

from reft_math.errors import UserError
from reft_math.models.adapter_files import WEIGHTS_NAME
from reft_math.models.standalone import read_adapter


@pytest.mark.parametrize("intervention", ["red", "bias", "loreft", "direft"])
def test_interventions_are_those_on_the_base(tiny_model: TinyModel, tmp_path: Path, intervention: str) -> None:
    reft_model = randomised(tiny_model("Llama"), intervention=intervention, layers="0,2")
    reft_model.save_pretrained(tmp_path)
    config, found = read_adapter(tmp_path)
    assert config == reft_model.prefix_config
    assert list(found) == [0, 2]
    hidden = torch.randn(5, 32)
    for layer, expected in reft_model.by_layer():
        torch.testing.assert_close(found[layer](hidden), expected(hidden), rtol=0, atol=0)


def test_a_site_that_is_a_path_is_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    randomised(tiny_model("Llama"), site="model.layers.{layer}.mlp.gate_proj").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="adapters at named sites can be read without their base"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("removed", "message"), [("layer_1_", "does not hold the layers"), ("learned_source.bias", "this adapter's param")]
)
def test_parameters_that_are_missing_are_one_line(
    tiny_model: TinyModel, tmp_path: Path, removed: str, message: str
) -> None:
    randomised(tiny_model("Llama")).save_pretrained(tmp_path)
    path = tmp_path / WEIGHTS_NAME
    save_file({name: tensor for name, tensor in load_file(path).items() if removed not in name}, path)
    with pytest.raises(UserError, match=message) as refused:
        read_adapter(tmp_path)
    assert "\n" not in str(refused.value)
