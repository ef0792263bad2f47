"""What training needs of memory: the arithmetic of it, for a decoder of attention and gated MLPs.

Notation: B rows of L tokens with n targets each; N layers of hidden size d and h heads, with q and k the widths of all
queries and of all keys, and f the MLP's; V tokens in the vocabulary; e bytes a number of the dtype computed in.

The weights of the base are frozen, so that a linear layer keeps nothing of its input. What is kept for the backward
pass is what is between them: each of the two norms its input and scale in float32; attention its queries, keys and
values (both once a head, however few there are), output, additive mask and a sum a head; the MLP both factors of its
product and what went into its activation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Decoder:
    """Widths of a decoder, and the bytes of the dtype that it computes in.

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
    """B rows of L tokens, n of which have logits: the most that rows which share lines can come to."""

    rows: int
    length: int
    targets: int


def decoder_of(config: Any, element: int) -> Decoder:
    """From the model's configuration; where it names no width of the MLP, that is four times the hidden size."""
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
    """``B·L·(8·d + 8 + 4·h + e·(4q + 3f + L))``: what one layer keeps for the backward pass."""
    in_float32 = 8 * decoder.hidden + 8 + 4 * decoder.heads
    widths = 4 * decoder.queries + 3 * decoder.inner + batch.length
    return batch.rows * batch.length * (in_float32 + decoder.element * widths)


def activation_bytes(decoder: Decoder, batch: Batch, layers: int, adapter: int, checkpointing: bool) -> int:
    """``layers · layer_bytes + B·L·(a + 4·d)``, or with checkpointing ``B·L·(N·e·d + a + 4·d)``: kept for backward.

    Args:
        decoder, batch: See there.
        layers: Through whose input gradients flow; what lies before the first trained parameter keeps nothing.
        adapter: a, the bytes a token that what is trained keeps; with checkpointing, outside of layers.
        checkpointing: Whether layers keep their input only.
    """
    tokens = batch.rows * batch.length
    in_layers = layers * layer_bytes(decoder, batch)
    if checkpointing:
        in_layers = tokens * decoder.layers * decoder.element * decoder.hidden
    return in_layers + tokens * (adapter + 4 * decoder.hidden)


def working_bytes(decoder: Decoder, batch: Batch) -> int:
    """``B·L·e·3f``: gradients of an MLP's product and activation, which live at once while one layer is at work."""
    return batch.rows * batch.length * decoder.element * 3 * decoder.inner


def logit_bytes(decoder: Decoder, batch: Batch) -> int:
    """``B·n·V·(e + 3·4)``: logits, and in float32 log-probabilities, their gradient and that of the logits."""
    return batch.rows * batch.targets * decoder.vocabulary * (decoder.element + 12)


def cache_bytes(decoder: Decoder, rows: int, length: int) -> int:
    """``2·N·k·e`` a token: keys and values in decoding."""
    return 2 * decoder.layers * decoder.keys * decoder.element * rows * length


def parameter_bytes(module: nn.Module, is_trained: bool) -> int:
    """Of the parameters that are trained, or of those that are frozen."""
    return sum(value.numel() * value.element_size() for value in _parameters(module, is_trained))


def parameter_count(module: nn.Module, is_trained: bool) -> int:
    """How many numbers are trained, or frozen."""
    return sum(value.numel() for value in _parameters(module, is_trained))


def _parameters(module: nn.Module, is_trained: bool) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad == is_trained]


def kept_by_linears(model: nn.Module, dtype: torch.dtype) -> int:
    """Bytes a token that trained linear layers, LoRA's among them, keep of their inputs.

    Layers of one block that read the same width read the same tensor, but for LoRA of another dtype than the base's:
    it makes a copy for each.

    Args:
        model: With what is trained in it.
        dtype: The base's.
    """
    widths = []
    for name, linear in model.named_modules():
        if isinstance(linear, nn.Linear) and linear.weight.requires_grad:
            block = name.partition(".lora_")[0].rpartition(".")[0]
            widths.append((block, linear.in_features, linear.weight.dtype))
    is_cast = any(own != dtype for _, _, own in widths)
    return sum(width * own.itemsize for _, width, own in (widths if is_cast else set(widths)))
