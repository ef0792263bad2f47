"""A bias at block as llama.cpp reads it: the file's tensors, names and metadata, by the package gguf's own reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from interventions import PrefixReftConfig, PrefixReftModel, get_prefix_reft_model
from reft_math.errors import UserError
from reft_math.models.control_vector import write_control_vector

gguf = pytest.importorskip("gguf", reason="writes and reads the file")


def adapter(model: PreTrainedModel, **changes: object) -> PrefixReftModel:
    config = {"intervention": "bias", "site": "block", "layers": "1-2", **changes}
    reft_model = get_prefix_reft_model(model, PrefixReftConfig(**config))  # type: ignore[arg-type]
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in reft_model.interventions.parameters():
            parameter.add_(torch.randn_like(parameter))
    return reft_model


def test_the_file_holds_each_layers_bias_to_the_bit(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    """As llama.cpp asks: one dimension, float32, named by a layer from 1 on."""
    reft_model = adapter(tiny_model())
    write_control_vector(reft_model, tmp_path / "vector.gguf")
    reader = gguf.GGUFReader(tmp_path / "vector.gguf")
    said = {name: reader.fields[name].contents() for name in reader.fields if not name.startswith("GGUF.")}
    assert said == {
        "general.architecture": "controlvector",
        "controlvector.model_hint": "llama",
        "controlvector.layer_count": 2,
    }
    biases = {f"direction.{layer}": intervention.bias for layer, intervention in reft_model.by_layer()}
    assert [tensor.name for tensor in reader.tensors] == list(biases) == ["direction.1", "direction.2"]
    for tensor in reader.tensors:
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        assert torch.equal(torch.from_numpy(tensor.data.copy()), biases[tensor.name].detach())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": "all"}, "begin at layer 1; the adapter acts on layer 0 too"),
        ({"intervention": "red"}, "a bias at block; the adapter is red at block"),
        ({"intervention": "loreft"}, "a bias at block; the adapter is loreft at block"),
        ({"site": "ffn_down"}, "a bias at block; the adapter is bias at ffn_down"),
        ({"positions": "prompt"}, "acts on prompt positions only"),
        ({"gate": "prompt"}, "gate is prompt, which leaves generated tokens alone; --every-token"),
    ],
)
def test_what_no_control_vector_can_hold_is_refused(
    tiny_model: Callable[..., PreTrainedModel], tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        write_control_vector(adapter(tiny_model(), **changes), tmp_path / "vector.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_gate_of_the_prompt_is_written_on_request(tiny_model: Callable[..., PreTrainedModel], tmp_path: Path) -> None:
    write_control_vector(adapter(tiny_model(), gate="prompt"), tmp_path / "vector.gguf", every_token=True)
    assert len(gguf.GGUFReader(tmp_path / "vector.gguf").tensors) == 2
