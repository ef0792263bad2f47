"""Greedy decoding in which rows that have ended leave the batch.

Stock sampling pauses at each step in which a row ends; that row's place in the KV cache is freed, and stock sampling
goes on with the others. The tokens are stock sampling's, but for exact ties: a smaller batch may round otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.utils import GenerateDecoderOnlyOutput

from interventions.logits import NotFiniteLogits
from interventions.pairs import _select
from reft_math.errors import UserError


@torch.no_grad()
def sample_leaving(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    ended: torch.Tensor | None = None,
    **model_kwargs: Any,
) -> Any:
    """Decoding loop for ``model.generate(custom_generate=sample_leaving)``; stock sampling where `may_leave` is false.

    Args:
        model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs: As stock ``generate``
            hands them to its own loops. Logits processors must treat each row by itself. Stopping criteria see every
            row where it was, those that left padded.
        ended: Rows that have ended before, ``(rows,)``; the cache must then hold all tokens but the last.

    Returns:
        Sequences ``(rows, position)``, or with ``return_dict_in_generate`` stock ``generate``'s output; its cache is
        None if rows could leave.

    Raises:
        NotFiniteLogits: Raised by a processor; its row is counted in the whole batch.
        UserError: The settings ask for beams or another way of decoding.
    """
    mode = generation_config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise UserError(
            f"sample_leaving decodes greedily or samples; got {mode.value.replace('_', ' ')}. Leave custom_generate out"
        )
    if not may_leave(stopping_criteria, generation_config, input_ids.device, model_kwargs.get("past_key_values")):
        return model._sample(input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs)
    batch = _PresentRows(stopping_criteria, input_ids, generation_config._pad_token_tensor)
    cache = model_kwargs["past_key_values"]
    if ended is not None:
        batch.ended = ended
    while True:
        staying = (~batch.ended[batch.rows]).nonzero().squeeze(1)
        if not len(staying):
            break
        if len(staying) < len(batch.rows):
            cache.batch_select_indices(staying)
            model_kwargs = {name: _select(value, staying, len(batch.rows)) for name, value in model_kwargs.items()}
            batch.rows = batch.rows[staying]
        width = batch.sequences.shape[1]
        try:
            model._sample(batch.sequences[batch.rows], logits_processor, batch, generation_config, **model_kwargs)
        except NotFiniteLogits as error:
            raise NotFiniteLogits(int(batch.rows[error.row])) from None
        begin_at_cache(generation_config, batch.sequences)
        # The keyword arguments hold the cache itself; mask and positions grew in stock sampling's own copy of them.
        drawn = batch.sequences.shape[1] - width
        model_kwargs = model._update_model_kwargs_for_generation({}, model_kwargs, num_new_tokens=drawn)
    if not generation_config.return_dict_in_generate:
        return batch.sequences
    return GenerateDecoderOnlyOutput(batch.sequences)


def may_leave(criteria: StoppingCriteriaList, config: GenerationConfig, device: torch.device, cache: Any) -> bool:
    """Returns whether rows that have ended are padded, and nothing else of them is asked for or drawn at random."""
    outputs = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
    return (
        not config.do_sample  # draws of the rows in a batch depend on each other
        and any(hasattr(criterion, "eos_token_id") for criterion in criteria)  # without, stock sampling does not pad
        and not any(getattr(config, name) for name in outputs)
        and device.type != "mps"  # stops a step late there
        and isinstance(cache, DynamicCache)
        and not cache.offloading
        and {type(layer) for layer in cache.layers} <= {DynamicLayer, DynamicSlidingWindowLayer}
    )


def begin_at_cache(generation_config: GenerationConfig, input_ids: torch.Tensor) -> None:
    """Tells stock sampling that the cache holds all tokens but the last."""
    # Without a mask stock generate reads from here that input_ids also hold the tokens in the cache.
    generation_config._mask_length = input_ids.shape[1]
    generation_config.prefill_chunk_size = None  # the prompt is in the cache; transformers 5.17 would process it again


class _PresentRows(StoppingCriteriaList):  # type: ignore[misc]
    """Stopping criteria of a batch that others of its rows have left; stops at a step in which a row ends.

    Attributes:
        sequences: Prompts and drawn tokens of all rows, ``(rows, position)``.
        ended: Rows that have ended, ``(rows,)``.
        rows: Indices of the rows that are present.
    """

    def __init__(self, criteria: StoppingCriteriaList, sequences: torch.Tensor, pad_token: torch.Tensor) -> None:
        super().__init__(criteria)
        self.sequences, self.pad_token = sequences, pad_token
        self.ended = torch.zeros(len(sequences), dtype=torch.bool, device=sequences.device)
        self.rows = torch.arange(len(sequences), device=sequences.device)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        column = self.pad_token.to(input_ids.device).repeat(len(self.sequences), 1)
        column[self.rows] = input_ids[:, -1:]
        self.sequences = torch.cat([self.sequences, column], dim=1)
        self.ended = self.ended | super().__call__(self.sequences, scores, **kwargs)
        return self.ended[self.rows].any().expand(len(self.rows))
