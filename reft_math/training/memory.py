"""Estimates the memory of training, for a decoder of attention and gated MLPs.

Notation: B rows of L tokens with n targets each; N layers of hidden size d and h heads, with q and k the widths of all
queries and of all keys, and f the MLP's; V tokens in the vocabulary; e bytes per number of the computing dtype.

The weights of the base are frozen, so a linear layer keeps nothing of its input. The backward pass keeps only what is
between linear layers: for each of the two norms, its input and its scale in float32; for attention, queries, keys and
values (keys and values once per head, even if shared), output, additive mask and one sum per head; for the MLP, both
factors of its product and the input of its activation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Decoder:
    """Holds the widths of a decoder and the bytes per number of its computing dtype.

    Attributes:
        layers, hidden, heads, queries, keys, inner, vocabulary: N, d, h, q, k, f, V.
        element: e.
    """

    layers: int
    hidden: int
    heads: int
    queries: int
    keys: int
    inner: int
    vocabulary: int
    element: int


@dataclass(frozen=True)
class Batch:
    """B rows of L tokens, n of which have logits: the greatest batch that packed rows can give."""

    rows: int
    length: int
    targets: int


def decoder_of(config: Any, element: int) -> Decoder:
    """Reads the widths from the model's configuration; an MLP without a width gets four times the hidden size."""
    config = config.get_text_config()
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    return Decoder(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=heads,
        queries=heads * head,
        keys=key_heads * head,
        inner=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        vocabulary=config.vocab_size,
        element=element,
    )


def layer_bytes(decoder: Decoder, batch: Batch) -> int:
    """Returns ``B·L·(8·d + 8 + 4·h + e·(4q + 3f + L))``, the bytes that one layer keeps for the backward pass."""
    in_float32 = 8 * decoder.hidden + 8 + 4 * decoder.heads
    widths = 4 * decoder.queries + 3 * decoder.inner + batch.length
    return batch.rows * batch.length * (in_float32 + decoder.element * widths)


def activation_bytes(decoder: Decoder, batch: Batch, layers: int, adapter: int, checkpointing: bool) -> int:
    """Returns bytes kept: ``layers · layer_bytes + B·L·(a + 4·d)``, checkpointed ``B·L·(N·e·d + a + 4·d)``.

    Args:
        decoder, batch: Widths and batch size.
        layers: Number of layers whose input gradients flow through; those before the first trained one keep nothing.
        adapter: a, bytes per token that the trained parameters keep; with checkpointing, outside of layers.
        checkpointing: Whether layers keep only their input.
    """
    tokens = batch.rows * batch.length
    in_layers = layers * layer_bytes(decoder, batch)
    if checkpointing:
        in_layers = tokens * decoder.layers * decoder.element * decoder.hidden
    return in_layers + tokens * (adapter + 4 * decoder.hidden)


def working_bytes(decoder: Decoder, batch: Batch) -> int:
    """Returns ``B·L·e·3f``: gradients of an MLP's product and activation, which exist at once in one layer's pass."""
    return batch.rows * batch.length * decoder.element * 3 * decoder.inner


def logit_bytes(decoder: Decoder, batch: Batch) -> int:
    """Returns ``B·n·V·(e + 3·4)``: logits, and in float32 log-probabilities, their gradient and the logits'."""
    return batch.rows * batch.targets * decoder.vocabulary * (decoder.element + 12)


def cache_bytes(decoder: Decoder, rows: int, length: int) -> int:
    """Returns ``2·N·k·e`` per token: bytes of keys and values in decoding."""
    return 2 * decoder.layers * decoder.keys * decoder.element * rows * length


def parameter_bytes(module: nn.Module, is_trained: bool) -> int:
    """Returns the bytes of the trained or of the frozen parameters."""
    return sum(value.numel() * value.element_size() for value in _parameters(module, is_trained))


def parameter_count(module: nn.Module, is_trained: bool) -> int:
    """Returns the number of trained or of frozen parameters."""
    return sum(value.numel() for value in _parameters(module, is_trained))


def _parameters(module: nn.Module, is_trained: bool) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad == is_trained]


def kept_by_linears(model: nn.Module, dtype: torch.dtype) -> int:
    """Returns the bytes per token that trained linear layers, LoRA's included, keep of their inputs.

    Layers of one block that read the same width read the same tensor, except LoRA with a dtype other than the base's,
    which makes a copy for each.

    Args:
        model: The model with the trained layers in it.
        dtype: The base's dtype.
    """
    widths = []
    for name, linear in model.named_modules():
        if isinstance(linear, nn.Linear) and linear.weight.requires_grad:
            block = name.partition(".lora_")[0].rpartition(".")[0]
            widths.append((block, linear.in_features, linear.weight.dtype))
    is_cast = any(own != dtype for _, _, own in widths)
    return sum(width * own.itemsize for _, width, own in (widths if is_cast else set(widths)))
