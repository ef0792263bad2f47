from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from reft_math.commands.options.training import FittingOptions
from reft_math.training.dry_run import optimiser_steps, size_text
from reft_math.training.memory import (
    Batch,
    activation_bytes,
    cache_bytes,
    decoder_of,
    kept_by_linears,
    layer_bytes,
    logit_bytes,
    working_bytes,
)

LLAMA_3_8B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
)


def test_llama_3_8b_by_hand() -> None:
    """bfloat16: 2·4·4096 + 8 = 32,776 of norms, 4·32 = 128 of sums, 2·(4·4096 + 3·14336 + 256) = 119,296 between."""
    decoder, batch = decoder_of(LLAMA_3_8B, 2), Batch(rows=16, length=256, targets=10)
    tokens = 16 * 256
    assert layer_bytes(decoder, batch) == tokens * (32_776 + 128 + 119_296)
    kept, final_norm = 32 * 14_336 * 2, 16_384
    assert activation_bytes(decoder, batch, 31, kept, checkpointing=False) == tokens * (
        31 * 152_200 + kept + final_norm
    )
    assert activation_bytes(decoder, batch, 31, 0, checkpointing=True) == tokens * (32 * 8192 + final_norm)
    assert working_bytes(decoder, batch) == tokens * 2 * 3 * 14_336
    assert logit_bytes(decoder, batch) == 16 * 10 * 128_256 * 14
    assert cache_bytes(decoder, rows=1, length=1) == 128 * 1024


def test_one_input_is_kept_once_but_for_copies_in_another_dtype() -> None:
    """q, k and v read one tensor of width 4; gate and up another; o reads one as wide as q's, and down one of 6."""
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=4,
        intermediate_size=6,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    layer = model.model.layers[0].requires_grad_(True)
    model.lm_head.requires_grad_(False)
    assert kept_by_linears(model, torch.float32) == 4 * (4 + 4 + 6)
    assert kept_by_linears(model, torch.bfloat16) == 4 * (4 * 4 + 2 * 4 + 6)
    assert isinstance(layer.mlp.down_proj, nn.Linear)


@pytest.mark.parametrize(
    ("rows", "batch", "accumulation", "processes", "epochs", "steps"),
    [(48, 16, 1, 1, 3, 9), (49, 16, 1, 1, 3, 12), (49, 16, 3, 1, 1, 2), (49, 16, 1, 4, 1, 1), (48, 16, 1, 1, 0.5, 2)],
)
def test_steps_are_counted_as_the_trainer_counts_them(
    rows: int, batch: int, accumulation: int, processes: int, epochs: float, steps: int
) -> None:
    options = FittingOptions(batch_size=batch, accumulation=accumulation, epochs=epochs)
    assert optimiser_steps(rows, options, processes) == steps


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**20, "3.0 MiB"), (2**40, "1024.00 GiB")]
)
def test_sizes_are_told_in_their_unit(size: int, text: str) -> None:
    assert size_text(size) == text
