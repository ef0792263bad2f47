"""What a forward pass keeps for the backward pass, against `layer_bytes`, which docs/scale.md goes by."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

from interventions import PrefixReftConfig, get_prefix_reft_model
from reft_math.training.memory import Batch, decoder_of, layer_bytes

ROWS, LENGTH = 4, 40


def kept_bytes(model: PreTrainedModel, checkpointing: bool) -> int:
    """Of one forward pass with RED on ``ffn_up``: every storage once, parameters not."""
    reft_model = get_prefix_reft_model(model.bfloat16(), PrefixReftConfig())
    if checkpointing:
        reft_model.train().gradient_checkpointing_enable()
    parameters = {weight.untyped_storage().data_ptr() for weight in [*model.parameters(), *reft_model.parameters()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    attended = torch.ones(ROWS, LENGTH, dtype=torch.bool)
    attended[0, :3] = False  # padding on the left
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        reft_model(torch.full((ROWS, LENGTH), 3), attended, intervention_mask=attended, logits_to_keep=10)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bytes_a_token_and_layer(tiny_model: Callable[..., PreTrainedModel], checkpointing: bool) -> None:
    """By two more layers: what does not grow with them, such as the logits, drops out."""
    few, more = (kept_bytes(tiny_model(num_hidden_layers=layers), checkpointing) for layers in (2, 4))
    width, mlp = 32, 48
    decoder = decoder_of(tiny_model().config, 2)
    red = 2 * mlp * ROWS * LENGTH
    formula = 2 * width * ROWS * LENGTH if checkpointing else layer_bytes(decoder, Batch(ROWS, LENGTH, 10)) + red
    # To the byte with torch 2.15 on a CPU; other versions may keep a little more or less.
    assert (more - few) / 2 == pytest.approx(formula, rel=0.05)
