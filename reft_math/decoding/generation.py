"""Generation with interventions on the prompt and the first tokens, and the base alone after them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel

from reft_math.decoding.gate import Gate
from reft_math.errors import UserError


def generate_with_gate(
    model: PreTrainedModel,
    inputs: torch.Tensor,
    gate: Gate,
    intervening: Callable[[int], AbstractContextManager[None]],
    attention_mask: torch.Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    **kwargs: Any,
) -> Any:
    """``model.generate`` under a gate.

    With ``tokens:N``, the first N tokens are drawn with interventions, and the base goes on from prompt and prefix read
    afresh: exactly what it would do with this prefix, none of its cache intervened on.

    Args:
        model: The base, interventions hooked in.
        inputs: Prompts, ``(batch, position)``, padded on the left.
        gate: When interventions act.
        intervening: ``intervening(prompt_length)`` is the context in which they do.
        attention_mask: ``(batch, position)``; taken from the padding token where left out.
        generation_config, **kwargs: As for ``model.generate``.

    Returns:
        Always-on and off gates: what ``model.generate`` returns. ``tokens:N``: sequences
        ``(batch × num_return_sequences, position)``, padded on the right.

    Raises:
        UserError: An option that cannot be split in two at the N-th token.
    """
    config, options = _resolve(model, generation_config, kwargs)
    if attention_mask is None:
        attention_mask = _attention_from_padding(inputs, config.pad_token_id)
    if gate.num_tokens == 0:
        return model.generate(inputs, attention_mask=attention_mask, generation_config=config, **options)
    prompt_length = inputs.shape[1]
    if gate.num_tokens is None:
        with intervening(prompt_length):
            return model.generate(inputs, attention_mask=attention_mask, generation_config=config, **options)

    _check_splittable(config, options)
    budget = _max_new_tokens(config, prompt_length)
    config.max_length = None
    config.max_new_tokens = min(gate.num_tokens, budget)
    with intervening(prompt_length):
        started = model.generate(inputs, attention_mask=attention_mask, generation_config=config, **options)
    attention_mask = attention_mask.repeat_interleave(config.num_return_sequences or 1, dim=0)
    prefix = started[:, prompt_length:]
    going_on = ~_ended(prefix, config.eos_token_id)
    if config.max_new_tokens == budget or not going_on.any():
        return started

    config.max_new_tokens = budget - gate.num_tokens
    config.num_return_sequences = 1
    attention_mask = torch.cat([attention_mask, torch.ones_like(prefix)], dim=1)
    continued = model.generate(
        started[going_on], attention_mask=attention_mask[going_on], generation_config=config, **options
    )
    rows = list(started)
    for row, sequence in zip(going_on.nonzero().flatten().tolist(), continued, strict=True):
        rows[row] = sequence
    return pad_sequence(rows, batch_first=True, padding_value=_pad_id(config))


def _resolve(
    model: PreTrainedModel, generation_config: GenerationConfig | None, kwargs: dict[str, Any]
) -> tuple[GenerationConfig, dict[str, Any]]:
    """The generation settings with keyword arguments worked in, and the keyword arguments that are not settings."""
    config = copy.deepcopy(generation_config or model.generation_config)
    options: dict[str, Any] = config.update(**kwargs)
    # As stock generate does: what a given configuration leaves out is the model's own.
    config.update(**model.generation_config.to_dict(), defaults_only=True)
    return config, options


def _attention_from_padding(inputs: torch.Tensor, pad_token_id: int | None) -> torch.Tensor:
    """Ones but for the padding on the left: a padding token inside a prompt counts as a token."""
    if pad_token_id is None:
        return torch.ones_like(inputs)
    return (inputs != pad_token_id).long().cummax(dim=1).values


_NOT_IN_TWO_PARTS = (
    "streamer",
    "assistant_model",
    "custom_generate",
    "stopping_criteria",
    "past_key_values",
    "stop_strings",
    "max_time",
    "min_new_tokens",
    "return_dict_in_generate",
)


def _check_splittable(config: GenerationConfig, options: dict[str, Any]) -> None:
    """Refuses what would mean something else when generation is done in two parts."""
    if (config.num_beams or 1) > 1:
        raise UserError("a token gate decodes greedily or by sampling; num_beams > 1 needs gate='always' or 'off'")
    for name in _NOT_IN_TWO_PARTS:
        value = options.get(name, getattr(config, name, None))
        if value is not None and value is not False:
            raise UserError(f"a token gate cannot be combined with {name}; use gate='always' or 'off'")


def _max_new_tokens(config: GenerationConfig, prompt_length: int) -> int:
    if config.max_new_tokens is not None:
        return int(config.max_new_tokens)
    if config.max_length is not None:
        return max(int(config.max_length) - prompt_length, 0)
    raise UserError("generation needs an end: pass max_new_tokens")


def _ended(prefix: torch.Tensor, eos_token_id: int | list[int] | None) -> torch.Tensor:
    """Rows of ``prefix: (batch, position)`` that hold an end token."""
    if eos_token_id is None:
        return torch.zeros(len(prefix), dtype=torch.bool, device=prefix.device)
    return torch.isin(prefix, torch.as_tensor(eos_token_id, device=prefix.device)).any(dim=1)


def _pad_id(config: GenerationConfig) -> int:
    if config.pad_token_id is not None:
        return int(config.pad_token_id)
    eos = config.eos_token_id
    return int(eos[0] if isinstance(eos, list) else eos or 0)
