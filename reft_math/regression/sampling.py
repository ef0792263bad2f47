"""Generates answers as text, which predictors without a grid parse."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reft_math.errors import UserError

# Settings of a checkpoint that change its distribution, or keep its cache from growing: `generate` gets None for them.
HABITS = (
    *("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "no_repeat_ngram_size"),
    "cache_implementation",
)


def write_numbers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    end_token_ids: Sequence[int],
    max_new_tokens: int = 8,
    samples: int = 1,
    temperature: float | None = None,
) -> list[list[str]]:
    """Returns the greedy completion of every prompt, or ``z_1 … z_n`` drawn from ``p(z|x)`` at a temperature.

    A prompt is read once, except its last token, which each sample reads: ``batch · (L − 1 + samples · tokens drawn)``
    tokens in total. ``batch · samples`` rows are in memory together.

    Args:
        model: Causal language model, also under interventions that tell prompt from solution by column.
        tokenizer: The model's tokenizer.
        input_ids: Prompts, ``(batch, L)``, padded on the left.
        attention_mask: ``(batch, L)``, 0 at padding.
        end_token_ids: A completion ends before the first of these; there may be none.
        max_new_tokens: Maximum number of tokens.
        samples: Number n of samples; one for greedy.
        temperature: 1 is the model's own distribution, whatever the checkpoint's settings; None is greedy.

    Returns:
        n texts for every prompt, without special tokens, up to the first newline.

    Raises:
        UserError: There are no samples, or several equal greedy ones, or the temperature is not positive.
    """
    _check(samples, temperature)
    settings: dict[str, Any] = {
        **dict.fromkeys(HABITS),
        "do_sample": False,
        "eos_token_id": list(end_token_ids) or None,
        "pad_token_id": tokenizer.pad_token_id,
        "use_cache": True,
        "return_dict_in_generate": True,
    }
    if samples > 1 and (attention_mask.sum(dim=1) > 1).all():
        # Stock sampling would read every prompt once per sample.
        cache = model.generate(
            input_ids=input_ids[:, :-1], attention_mask=attention_mask[:, :-1], max_new_tokens=1, **settings
        ).past_key_values
        cache.reorder_cache(torch.arange(len(input_ids)).repeat_interleave(samples))
        settings["past_key_values"] = cache
    if temperature is not None:
        settings |= {"do_sample": True, "temperature": float(temperature), "num_return_sequences": samples}
    sequences = model.generate(
        input_ids=input_ids, attention_mask=attention_mask, max_new_tokens=max_new_tokens, **settings
    ).sequences
    texts = [_text(tokenizer, row, end_token_ids) for row in sequences[:, input_ids.shape[1] :].tolist()]
    return [texts[first : first + samples] for first in range(0, len(texts), samples)]


def _check(samples: int, temperature: float | None) -> None:
    if temperature is not None and not temperature > 0:
        raise UserError(
            f"answers are drawn at a temperature above 0; got {temperature}: leave it out for greedy answers"
        )
    if samples < 1:
        raise UserError(f"at least one answer a prompt has to be written; got {samples} samples")
    if samples > 1 and temperature is None:
        raise UserError(
            f"greedy answers to a prompt are all the same; got {samples} samples: give a temperature, such as 1"
        )


def _text(tokenizer: PreTrainedTokenizerBase, drawn: Sequence[int], end_token_ids: Sequence[int]) -> str:
    tokens = list(takewhile(lambda token: token not in end_token_ids, drawn))
    return str(tokenizer.decode(tokens, skip_special_tokens=True)).partition("\n")[0]
