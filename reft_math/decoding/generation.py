"""Generation under a gate: both models in one batch while it is open, stock generation after."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from transformers import (
    Cache,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from reft_math.data.positions import Positions
from reft_math.decoding.gate import AlwaysOn, Gate, KLGate, PromptOnly, TokenGate, kl_divergence, parse_gate
from reft_math.errors import UserError

Handoff = Literal["base", "keep"]


class Interventions(Protocol):
    """What gated generation asks of a model with interventions; `interventions.PrefixReftModel` is one."""

    @property
    def positions(self) -> Positions:
        """Where they act."""

    @property
    def gate(self) -> str:
        """The gate they are meant to be decoded with."""

    def intervening(self, mask: torch.Tensor) -> AbstractContextManager[None]:
        """Within it they act where ``mask: (rows, 1 or position)`` is true."""

    def decoding(self, prompt_length: int, positions: Positions) -> AbstractContextManager[None]:
        """Within it they act in every forward pass, on columns before ``prompt_length`` as prompt."""


@dataclass
class GatedOutput(GenerateDecoderOnlyOutput):  # type: ignore[misc]
    """Stock ``generate``'s output and what the gate saw.

    Attributes:
        kl: ``D_t``, ``(rows, steps)`` in nats, from the first token to the last that any gate was open at; NaN where
            a row's gate was closed.
        cumulative_kl: Its sum ``C``, ``(rows,)``.
        closing_positions: The first token each row's base drew, ``(rows,)``; -1 where the row ended before.
    """

    kl: torch.Tensor | None = None
    cumulative_kl: torch.Tensor | None = None
    closing_positions: torch.Tensor | None = None


def generate_with_gate(
    model: PreTrainedModel,
    inputs: torch.Tensor,
    interventions: Interventions,
    gate: Gate,
    handoff: Handoff = "base",
    until_closed: bool = False,
    streamer: BaseStreamer | None = None,
    **kwargs: Any,
) -> Any:
    """``model.generate`` under a gate, with all that ``generate`` takes but beams and assistants.

    Args:
        model: The base, interventions hooked in.
        inputs: Prompts, ``(batch, position)``, padded on the left.
        interventions: What the gate opens.
        gate: When they act. Under ``off``, ``always`` and ``prompt`` this is stock ``generate``, beams and all.
        handoff, until_closed: See `gated_generate`.
        streamer, **kwargs: As for ``model.generate``.

    Returns:
        What ``model.generate`` returns; with ``return_dict_in_generate`` a `GatedOutput` under all other gates.

    Raises:
        UserError: An option that a gate cannot go with.
    """
    never_pairs = gate == TokenGate(0) or isinstance(gate, AlwaysOn | PromptOnly)
    if never_pairs and until_closed:
        raise UserError(f"until_closed needs a gate that closes while tokens are drawn; got {gate}")
    if gate == TokenGate(0):
        return model.generate(inputs, streamer=streamer, **kwargs)
    if isinstance(gate, AlwaysOn | PromptOnly):
        with interventions.decoding(inputs.shape[1], _acting_positions(gate, interventions)):
            return model.generate(inputs, streamer=streamer, **kwargs)
    for name in ("assistant_model", "custom_generate"):
        if kwargs.get(name) is not None:
            raise UserError(f"a gate {gate} cannot be combined with {name}; use gate='always' or 'off'")
    # Stock generate hands neither streamer nor tokenizer on to a custom loop.
    config, criteria = _without_stop_strings(model, kwargs)
    loop = partial(
        gated_generate,
        interventions=interventions,
        gate=gate,
        handoff=handoff,
        until_closed=until_closed,
        streamer=streamer,
    )
    return model.generate(inputs, custom_generate=loop, generation_config=config, stopping_criteria=criteria, **kwargs)


def _without_stop_strings(
    model: PreTrainedModel, kwargs: dict[str, Any]
) -> tuple[GenerationConfig | None, StoppingCriteriaList]:
    """Moves ``stop_strings`` from configuration and ``kwargs`` to a stopping criterion."""
    config: GenerationConfig | None = kwargs.pop("generation_config", None)
    criteria = StoppingCriteriaList(kwargs.pop("stopping_criteria", None) or [])
    tokenizer = kwargs.pop("tokenizer", None)
    if "stop_strings" in kwargs:
        strings = kwargs.pop("stop_strings")
    else:
        strings = (config or model.generation_config).stop_strings
    if strings is None:
        return config, criteria
    if tokenizer is None:
        raise UserError("stop_strings are found in text: pass the tokenizer too, generate(…, tokenizer=tokenizer)")
    config = copy.deepcopy(config or model.generation_config)
    config.stop_strings = None
    criteria.append(StopStringCriteria(stop_strings=strings, tokenizer=tokenizer))
    return config, criteria


@torch.no_grad()
def gated_generate(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    *,
    interventions: Interventions,
    gate: Gate | str | None = None,
    handoff: Handoff = "base",
    until_closed: bool = False,
    streamer: BaseStreamer | None = None,
    **model_kwargs: Any,
) -> Any:
    """A decoding loop for ``model.generate(custom_generate=gated_generate, interventions=…, gate=…)``.

    While any gate is open, one forward pass a step runs a batch of B *survivors* and one *companion* for each open row,
    on one KV cache. Survivors are the rows that go on after the gate has closed: the base's with ``handoff="base"``,
    the intervened ones with ``"keep"``; companions are the other half of the pair, and leave when the row's gate
    closes. Once all have left, stock sampling goes on from the survivors' cache.

    ``D_t`` is measured on raw logits; logits processors act on those of the model that draws the token. A gate that
    counts tokens closes before a step's forward pass, one that measures divergence after it: then the base draws that
    step's token in either case, and ``keep`` goes on without interventions from the next.

    Args:
        model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs: As stock ``generate``
            hands them to its own loops.
        interventions: What the gate opens.
        gate: A gate or its text; the interventions' own by default.
        handoff: ``base`` goes on as the base that has read prompt and prefix itself; ``keep`` from the cache that the
            interventions have changed, without them.
        until_closed: Stop when all gates are closed or their rows ended; what comes after is another's to write.
        streamer: Gets tokens as from stock ``generate``, which does not forward its own ``streamer`` to a custom loop:
            bind it, ``partial(gated_generate, streamer=streamer)``.

    Returns:
        Sequences ``(rows, position)``, or a `GatedOutput` with ``return_dict_in_generate``.

    Raises:
        UserError: An option that a gate cannot go with.
    """
    if not isinstance(gate, Gate):
        gate = parse_gate(gate or interventions.gate)
    _check(generation_config, model_kwargs, handoff)
    if streamer is not None:
        streamer.put(input_ids.cpu())

    def go_on(input_ids: torch.Tensor, processor: Any, criteria: Any, **model_kwargs: Any) -> Any:
        return model._sample(
            input_ids,
            logits_processor=processor,
            stopping_criteria=criteria,
            generation_config=generation_config,
            streamer=streamer,
            **model_kwargs,
        )

    if isinstance(gate, AlwaysOn | PromptOnly):
        with interventions.decoding(input_ids.shape[1], _acting_positions(gate, interventions)):
            return go_on(input_ids, logits_processor, stopping_criteria, **model_kwargs)
    # As in stock sampling, rows that ended are padded where there is an end token at all.
    pads = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
    pad_token = generation_config._pad_token_tensor if pads else None
    pairs = _Pairs(model, interventions, gate, handoff, input_ids, generation_config, pad_token, model_kwargs)
    pairs.run(logits_processor, stopping_criteria, streamer)
    if pairs.ended.all() or until_closed:
        if streamer is not None:
            streamer.end()
        return pairs.output(None)
    processor = LogitsProcessorList([*logits_processor, _PadEnded(pairs.ended, pairs.pad_token)])
    criteria = StoppingCriteriaList([*stopping_criteria, _StayEnded(pairs.ended)])
    # Where there is no mask stock generate reads from here that input_ids hold what is in the cache, too.
    generation_config._mask_length = pairs.input_ids.shape[1]
    return pairs.output(go_on(pairs.input_ids, processor, criteria, **pairs.model_kwargs))


def _acting_positions(gate: Gate, interventions: Interventions) -> Positions:
    if not isinstance(gate, PromptOnly):
        return interventions.positions
    if interventions.positions == "generated":
        raise UserError("gate 'prompt' is for adapters that act on the prompt; this one acts on generated tokens only")
    return "prompt"


def _check(config: GenerationConfig, model_kwargs: dict[str, Any], handoff: str) -> None:
    if handoff not in ("base", "keep"):
        raise UserError(f"handoff is 'base' or 'keep'; got {handoff!r}")
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise UserError(
            f"a gate goes with greedy decoding and sampling; got {mode.value.replace('_', ' ')}."
            " Other modes need gate='always' or 'off'"
        )
    for name in ("output_attentions", "output_hidden_states"):
        if getattr(config, name):
            raise UserError(f"a gate cannot be combined with {name}: the rows of two models would mix; leave it out")
    cache = model_kwargs.get("past_key_values")
    if not config.use_cache or cache is None:
        raise UserError("a gate needs the KV cache; leave use_cache=False out")
    if cache.get_seq_length() > 0:
        raise UserError("a gate starts from the prompt; leave past_key_values out")


class _Pairs:
    """The rows of a batch while gates are open."""

    def __init__(
        self,
        model: PreTrainedModel,
        interventions: Interventions,
        gate: Gate,
        handoff: Handoff,
        input_ids: torch.Tensor,
        config: GenerationConfig,
        pad_token: torch.Tensor | None,
        model_kwargs: dict[str, Any],
    ) -> None:
        self.model, self.interventions, self.gate, self.handoff = model, interventions, gate, handoff
        self.input_ids, self.config, self.pad_token = input_ids, config, pad_token
        self.final_cache: Cache = model_kwargs["past_key_values"]
        self.model_kwargs = {**model_kwargs, "past_key_values": _growing(self.final_cache, model)}
        self.step = 0
        self.open_rows = self.all_rows = torch.arange(len(input_ids), device=input_ids.device)
        self.ended = torch.zeros_like(self.all_rows, dtype=torch.bool)
        self.closing_positions = torch.full_like(self.all_rows, -1)
        self.cumulative_kl: torch.Tensor | None = None
        self.kl: list[torch.Tensor] = []
        self.raw_logits: list[torch.Tensor] = []
        self.scores: list[torch.Tensor] = []

    def run(
        self, logits_processor: LogitsProcessorList, stopping_criteria: StoppingCriteriaList, streamer: Any
    ) -> None:
        """Draws tokens until no gate is open."""
        while len(self.open_rows) and self.gate.allows(self.step):
            logits, stays_open = self._gated_logits(self._forward())
            tokens = self._draw(logits, logits_processor)
            self.input_ids = torch.cat([self.input_ids, tokens[:, None]], dim=-1)
            self.ended = self.ended | stopping_criteria(self.input_ids, tuple(self.scores) or None)
            if streamer is not None:
                streamer.put(tokens.cpu())
            self.closing_positions[self.open_rows[~stays_open]] = self.step
            self._leave(stays_open & ~self.ended[self.open_rows])
            self.step += 1
        if len(self.open_rows):  # closed by count
            self.closing_positions[self.open_rows] = self.step
            self._leave(torch.zeros_like(self.open_rows, dtype=torch.bool))
        if self.step:
            self.model_kwargs["past_key_values"] = _moved(self.model_kwargs["past_key_values"], self.final_cache)

    def _forward(self) -> torch.Tensor:
        """Raw logits ``(survivors + companions, vocabulary)`` of the next token."""
        acts_on_prompt = self.interventions.positions != "generated"
        acts_on_generated = self.interventions.positions != "prompt"
        is_prefill = self.step == 0
        # Where the interventions leave the prompt alone, it is read once for both.
        in_pairs = not is_prefill or acts_on_prompt
        rows = torch.cat([self.all_rows, self.open_rows]) if in_pairs else self.all_rows
        kwargs = {name: _select(value, rows, len(self.all_rows)) for name, value in self.model_kwargs.items()}
        forward: Callable[[], Any]
        if is_prefill:
            forward = partial(self.model._prefill, self.input_ids[rows], self.config, kwargs)
        else:
            inputs = self.model.prepare_inputs_for_generation(self.input_ids[rows], next_sequence_length=1, **kwargs)
            forward = partial(self.model, **inputs, return_dict=True)
        if acts_on_prompt if is_prefill else acts_on_generated:
            with self.interventions.intervening(self._acting(rows)):
                outputs = forward()
        else:
            outputs = forward()
        self.model_kwargs = self.model._update_model_kwargs_for_generation(outputs, self.model_kwargs)
        logits: torch.Tensor = outputs.logits[:, -1]
        if in_pairs:
            return logits
        both = torch.cat([self.all_rows, self.all_rows])
        self.model_kwargs["past_key_values"].batch_select_indices(both)
        return logits[both]

    def _acting(self, rows: torch.Tensor) -> torch.Tensor:
        """Which rows interventions act on, ``(rows, 1)``: companions, or with ``keep`` the survivors still open."""
        acts = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        if self.handoff == "base":
            acts[len(self.all_rows) :] = True
        else:
            acts[self.open_rows] = True
        return acts[:, None]

    def _gated_logits(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Raw logits of whoever draws, ``(rows, vocabulary)``, and which open rows stay open."""
        survivors, companions = logits.split([len(self.all_rows), len(self.open_rows)])
        if self.handoff == "base":
            base, mod = survivors[self.open_rows], companions
        else:
            base, mod = companions, survivors[self.open_rows]
        direction = self.gate.direction if isinstance(self.gate, KLGate) else "mod||base"
        kl = kl_divergence(mod, base, direction)
        if self.cumulative_kl is None:
            self.cumulative_kl = torch.zeros(len(survivors), dtype=kl.dtype, device=kl.device)
        self.cumulative_kl[self.open_rows] += kl
        self.kl.append(torch.full_like(self.cumulative_kl, torch.nan).index_copy(0, self.open_rows, kl))
        stays_open = self.gate.stays_open(self.step, self.cumulative_kl[self.open_rows])
        drawing = torch.where(stays_open[:, None], mod, base)
        return survivors.index_copy(0, self.open_rows, drawing), stays_open

    def _draw(self, logits: torch.Tensor, logits_processor: LogitsProcessorList) -> torch.Tensor:
        """As stock sampling does, so that the same seed gives the same tokens."""
        logits = logits.to(copy=True, dtype=torch.float32, device=self.input_ids.device)
        scores = logits_processor(self.input_ids, logits)
        if self.config.return_dict_in_generate:
            self.raw_logits += [logits] if self.config.output_logits else []
            self.scores += [scores] if self.config.output_scores else []
        if self.config.do_sample:
            tokens = torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)
        else:
            tokens = scores.argmax(dim=-1)
        return tokens if self.pad_token is None else tokens.where(~self.ended, self.pad_token)

    def _leave(self, stay: torch.Tensor) -> None:
        """Takes the companions of open rows that do not ``stay`` out of the batch."""
        if stay.all():
            return
        companions = len(self.all_rows) + stay.nonzero().squeeze(1)
        self.model_kwargs["past_key_values"].batch_select_indices(torch.cat([self.all_rows, companions]))
        self.open_rows = self.open_rows[stay]

    def output(self, rest: Any) -> Any:
        """As stock ``generate`` would return what was drawn in pairs and the ``rest`` that stock sampling drew."""
        if not self.config.return_dict_in_generate:
            return self.input_ids if rest is None else rest
        rest = rest or GenerateDecoderOnlyOutput(self.input_ids, past_key_values=self.model_kwargs["past_key_values"])
        return GatedOutput(
            sequences=rest.sequences,
            scores=(*self.scores, *(rest.scores or ())) if self.config.output_scores else None,
            logits=(*self.raw_logits, *(rest.logits or ())) if self.config.output_logits else None,
            past_key_values=rest.past_key_values,
            kl=torch.stack(self.kl, dim=1) if self.kl else None,
            cumulative_kl=self.cumulative_kl,
            closing_positions=self.closing_positions,
        )


def _select(value: Any, rows: torch.Tensor, batch_size: int) -> Any:
    """Rows of tensors that have one for each of the batch; anything else as it is."""
    is_by_row = isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == batch_size
    return value[rows] if is_by_row else value


def _growing(cache: Cache, model: PreTrainedModel) -> Cache:
    """A cache whose rows can leave: the given one, or a dynamic one in a static one's place."""
    kinds = {type(layer) for layer in cache.layers}
    if cache.offloading or not kinds <= {DynamicLayer, DynamicSlidingWindowLayer, StaticLayer}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise UserError(f"a gate goes with dynamic caches, and static ones without sliding windows; got {names}")
    return DynamicCache(config=model.config.get_text_config(decoder=True)) if StaticLayer in kinds else cache


def _moved(cache: Cache, final_cache: Cache) -> Cache:
    """``cache``, in ``final_cache`` where that is another."""
    if cache is final_cache:
        return cache
    for index, layer in enumerate(cache.layers):
        final_cache.update(layer.keys, layer.values, index)
    return final_cache


class _StayEnded(StoppingCriteria):  # type: ignore[misc]
    """Rows that ended in pairs stay ended: stock sampling starts by taking all rows for unfinished."""

    def __init__(self, ended: torch.Tensor) -> None:
        self.ended = ended

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return self.ended


class _PadEnded(LogitsProcessor):  # type: ignore[misc]
    """Makes the padding token the only choice of rows that have ended."""

    def __init__(self, ended: torch.Tensor, pad_token: torch.Tensor | None) -> None:
        self.ended, self.pad_token = ended, pad_token

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.pad_token is None or not self.ended.any():
            return scores
        only_pad = torch.full_like(scores, -torch.inf)
        only_pad[:, self.pad_token] = 0
        return torch.where(self.ended[:, None], only_pad, scores)
