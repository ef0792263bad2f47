"""Generation under a gate: both models in one batch while it is open, stock generation after.

While any gate is open, one forward pass per step runs a batch of B *survivors* and one *companion* for each open row,
on one KV cache. Survivors are the rows that go on after the gate has closed: the base's with ``handoff="base"``, the
intervened ones with ``"keep"``. A companion is the other half of the pair and leaves when its row's gate closes. Once
all have left, stock sampling goes on from the survivors' cache.

``D_t`` is measured on raw logits; logits processors act on those of the model that draws the token. A gate that counts
tokens closes before a step's forward pass, one that measures divergence after it. In the second case the base draws
that step's token with either ``handoff``, and ``keep`` runs without interventions from the next step.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.streamers import BaseStreamer

from interventions.gates import AlwaysOn, Gate, PromptOnly, TokenGate, parse_gate
from interventions.leaving import begin_at_cache, may_leave, sample_leaving
from interventions.logits import FiniteLogits
from interventions.pairs import GatedOutput, Handoff, TwoModelBatch
from interventions.positions import BEHIND_PROMPTS, Positions
from reft_math.errors import UserError

if TYPE_CHECKING:
    from interventions.hooked import HookedReftModel

__all__ = ["GatedOutput", "Handoff", "acting_positions", "gated_generate", "generate_with_gate"]


def generate_with_gate(
    model: PreTrainedModel,
    inputs: torch.Tensor,
    interventions: HookedReftModel,
    gate: Gate,
    handoff: Handoff = "base",
    until_closed: bool = False,
    streamer: BaseStreamer | None = None,
    **kwargs: Any,
) -> Any:
    """Runs ``model.generate`` under a gate, with all options of ``generate`` but beam search and assistant models.

    Args:
        model: The base, with the interventions hooked in.
        inputs: Prompts, ``(batch, position)``, padded on the left.
        interventions: The interventions that the gate switches.
        gate: When they act. With ``off``, ``always`` and ``prompt`` this is stock ``generate``, beam search included.
        handoff, until_closed: See `gated_generate`.
        streamer, **kwargs: As for ``model.generate``; of other decoding loops, ``custom_generate=sample_leaving`` goes
            with every gate.

    Returns:
        What ``model.generate`` returns; under the other gates, with ``return_dict_in_generate``, a `GatedOutput`.

    Raises:
        UserError: An option does not work with a gate, or logits are NaN or infinite.
    """
    _check_choices(gate, handoff, until_closed)
    if until_closed and gate == TokenGate(0):
        raise UserError(f"until_closed needs a gate that closes while tokens are drawn; got {gate}")
    kwargs["logits_processor"] = _guarded(kwargs.get("logits_processor"))
    if gate == TokenGate(0):
        return model.generate(inputs, streamer=streamer, **kwargs)
    if isinstance(gate, AlwaysOn | PromptOnly):
        # Code that transformers compiled for the base alone (static cache, GPU) would leave the interventions out.
        kwargs["disable_compile"] = True
        with interventions.decoding(inputs.shape[1], acting_positions(gate, interventions)):
            return model.generate(inputs, streamer=streamer, **kwargs)
    leaving = kwargs.get("custom_generate") is sample_leaving
    if leaving:
        kwargs["custom_generate"] = None
    for name in ("assistant_model", "custom_generate"):
        if kwargs.pop(name, None) is not None:
            raise UserError(f"a gate {gate} cannot be combined with {name}; use gate='always' or 'off'")
    loop = partial(
        gated_generate,
        interventions=interventions,
        gate=gate,
        handoff=handoff,
        until_closed=until_closed,
        leaving=leaving,
        streamer=streamer,  # stock generate hands neither this nor the tokenizer on to a custom loop
    )
    _make_stop_strings_a_criterion(model, kwargs)
    return model.generate(inputs, custom_generate=loop, **kwargs)


def _guarded(processors: Sequence[LogitsProcessor] | None) -> LogitsProcessorList:
    """Puts a check for finite logits before the caller's own processors, which may exclude every token."""
    is_guarded = any(isinstance(processor, FiniteLogits) for processor in processors or ())
    return LogitsProcessorList([*([] if is_guarded else [FiniteLogits()]), *(processors or ())])


def _make_stop_strings_a_criterion(model: PreTrainedModel, kwargs: dict[str, Any]) -> None:
    """Moves ``stop_strings`` from ``kwargs``, or else from the configuration, to ``stopping_criteria``."""
    tokenizer = kwargs.pop("tokenizer", None)
    config: GenerationConfig = kwargs.get("generation_config") or model.generation_config
    strings = kwargs.get("stop_strings", config.stop_strings or model.generation_config.stop_strings)
    if strings is None:
        return
    if tokenizer is None:
        raise UserError("stop_strings are found in text: pass the tokenizer too, generate(…, tokenizer=tokenizer)")
    criterion = StopStringCriteria(stop_strings=strings, tokenizer=tokenizer)
    kwargs["stopping_criteria"] = StoppingCriteriaList([*(kwargs.get("stopping_criteria") or []), criterion])
    kwargs["stop_strings"] = None  # overrides both configurations


@torch.no_grad()
def gated_generate(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    *,
    interventions: HookedReftModel,
    gate: Gate | str | None = None,
    handoff: Handoff = "base",
    until_closed: bool = False,
    leaving: bool = False,
    streamer: BaseStreamer | None = None,
    **model_kwargs: Any,
) -> Any:
    """Decoding loop for ``model.generate(custom_generate=gated_generate, interventions=…, gate=…)``.

    Args:
        model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs: As stock ``generate``
            hands them to its own loops.
        interventions: The interventions that the gate switches.
        gate: A gate or its text; the interventions' own by default.
        handoff: ``base`` goes on with the base, which has read prompt and prefix itself; ``keep`` goes on without
            interventions from the cache that they have changed.
        until_closed: Stop when all gates are closed or their rows ended; the caller completes the rows elsewhere.
        leaving: Let rows that have ended leave the batch once all gates are closed; see `interventions.leaving`.
        streamer: Receives tokens as from stock ``generate``, which does not pass its own ``streamer`` to a custom
            loop: bind it with ``partial(gated_generate, streamer=streamer)``.

    Returns:
        Sequences ``(rows, position)``, or a `GatedOutput` with ``return_dict_in_generate``.

    Raises:
        UserError: An option does not work with a gate, or logits are NaN or infinite.
    """
    if not isinstance(gate, Gate):
        gate = parse_gate(interventions.gate if gate is None else gate)
    if getattr(interventions, "model", model) is not model:
        raise UserError("interventions act on the model they were put on; got another one's")
    _check_choices(gate, handoff, until_closed)
    model_kwargs |= _cache_if_off_by_default(model, generation_config)
    _check(generation_config, model_kwargs)
    if generation_config.prefill_chunk_size is not None and interventions.positions == "solution":
        raise UserError("positions 'solution' need the prompt in one pass; leave prefill_chunk_size out")
    logits_processor = _guarded(logits_processor)
    if streamer is not None:
        streamer.put(input_ids.cpu())

    sample = partial(model._sample, generation_config=generation_config, streamer=streamer)
    if isinstance(gate, AlwaysOn | PromptOnly):
        generation_config.disable_compile = True
        with interventions.decoding(input_ids.shape[1], acting_positions(gate, interventions)):
            return sample(input_ids, logits_processor, stopping_criteria, **model_kwargs)
    pad_token = _pad_token(generation_config, stopping_criteria)
    pairs = TwoModelBatch(model, interventions, gate, handoff, input_ids, generation_config, pad_token, model_kwargs)
    pairs.run(logits_processor, stopping_criteria, streamer)
    if pairs.ended.all() or until_closed:
        if streamer is not None:
            streamer.end()
        return pairs.output(None)
    begin_at_cache(generation_config, pairs.input_ids)
    cache = pairs.model_kwargs["past_key_values"]
    if leaving and streamer is None and may_leave(stopping_criteria, generation_config, input_ids.device, cache):
        leave = partial(sample_leaving, model, pairs.input_ids, logits_processor, stopping_criteria, generation_config)
        return pairs.output(leave(ended=pairs.ended, **pairs.model_kwargs))
    processor = LogitsProcessorList([*logits_processor, _PadEnded(pairs.ended, pairs.pad_token)])
    criteria = StoppingCriteriaList([*stopping_criteria, _StayEnded(pairs.ended)])
    return pairs.output(sample(pairs.input_ids, processor, criteria, **pairs.model_kwargs))


def _cache_if_off_by_default(model: PreTrainedModel, generation_config: GenerationConfig) -> dict[str, Any]:
    """Switches the cache on where it is off by the base's configuration and not by this call; returns arguments."""
    if generation_config.use_cache or model.generation_config.use_cache is not False:
        return {}
    generation_config.use_cache = True
    return {"use_cache": True, "past_key_values": DynamicCache(config=model.config.get_text_config(decoder=True))}


def _pad_token(generation_config: GenerationConfig, criteria: StoppingCriteriaList) -> torch.Tensor | None:
    """As in stock sampling, ended rows are padded if there is an end token."""
    pads = any(hasattr(criterion, "eos_token_id") for criterion in criteria)
    return generation_config._pad_token_tensor if pads else None


def acting_positions(gate: Gate, interventions: HookedReftModel) -> Positions:
    """Returns where the interventions act while the gate is open."""
    if not isinstance(gate, PromptOnly):
        return interventions.positions
    if interventions.positions in BEHIND_PROMPTS:
        where = interventions.positions
        raise UserError(f"gate 'prompt' is for adapters that act on the prompt; this one acts on {where} positions")
    return "prompt"


def _check_choices(gate: Gate, handoff: str, until_closed: bool) -> None:
    if until_closed and isinstance(gate, AlwaysOn | PromptOnly):
        raise UserError(f"until_closed needs a gate that closes; got {gate}")
    if handoff not in get_args(Handoff):
        raise UserError(f"handoff is 'base' or 'keep'; got {handoff!r}")


def _check(config: GenerationConfig, model_kwargs: dict[str, Any]) -> None:
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise UserError(
            f"a gate goes with greedy decoding and sampling; got {mode.value.replace('_', ' ')}."
            " PrefixReftModel.generate takes other modes with gate='always' or 'off'"
        )
    for name in ("output_attentions", "output_hidden_states"):
        if getattr(config, name):
            raise UserError(f"a gate cannot be combined with {name}: the rows of two models would mix; leave it out")
    if model_kwargs.get("inputs_embeds") is not None:
        raise UserError("a gate needs prompts as tokens; got inputs_embeds")
    cache = model_kwargs.get("past_key_values")
    if not config.use_cache or cache is None:
        raise UserError("a gate needs the KV cache; leave use_cache=False out")
    if cache.get_seq_length() > 0:
        raise UserError("a gate starts from the prompt; leave past_key_values out")


class _StayEnded(StoppingCriteria):  # type: ignore[misc]
    """Keeps rows that ended in the paired loop ended: stock sampling starts with all rows unfinished."""

    def __init__(self, ended: torch.Tensor) -> None:
        self.ended = ended

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return self.ended


class _PadEnded(LogitsProcessor):  # type: ignore[misc]
    """Leaves ended rows no token but the padding token."""

    def __init__(self, ended: torch.Tensor, pad_token: torch.Tensor | None) -> None:
        self.ended, self.pad_token = ended, pad_token

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.pad_token is None or not self.ended.any():
            return scores
        only_pad = torch.full_like(scores, -torch.inf)
        only_pad[:, self.pad_token] = 0
        return torch.where(self.ended[:, None], only_pad, scores)
