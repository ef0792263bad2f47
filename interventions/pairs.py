"""Runs two models in one batch: the rows of base and intervened model while gates are open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import (
    Cache,
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from interventions.gates import Gate, KLGate, kl_divergence
from interventions.logits import NotFiniteLogits
from interventions.positions import intervention_mask
from reft_math.errors import UserError

if TYPE_CHECKING:
    from interventions.hooked import HookedReftModel

Handoff = Literal["base", "keep"]


@dataclass
class GatedOutput(GenerateDecoderOnlyOutput):  # type: ignore[misc]
    """Stock ``generate``'s output with the gate's measurements.

    Attributes:
        kl: ``D_t``, ``(rows, steps)`` in nats, from the first token to the last at which any gate was open; NaN where
            a row's gate was closed.
        cumulative_kl: ``C``, ``(rows,)``: the sum of the part of ``D_t`` that the gate counts.
        closing_positions: Index of the first token that the base drew, ``(rows,)``; -1 if the row ended before.
        dead_band: Nats per token that the gate did not count; None if it counted all.
    """

    kl: torch.Tensor | None = None
    cumulative_kl: torch.Tensor | None = None
    closing_positions: torch.Tensor | None = None
    dead_band: float | None = None


class TwoModelBatch:
    """The rows of a batch of B while gates are open; see `interventions.generation.gated_generate`.

    Each forward pass runs the B survivors and, after them, a companion for each open row.

    Attributes:
        input_ids: Prompts and tokens drawn so far, ``(B, position)``.
        model_kwargs: Arguments of the survivors' next forward pass, with the KV cache.
        ended: Rows that have stopped, ``(B,)``.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        interventions: HookedReftModel,
        gate: Gate,
        handoff: Handoff,
        input_ids: torch.Tensor,
        config: GenerationConfig,
        pad_token: torch.Tensor | None,
        model_kwargs: dict[str, Any],
    ) -> None:
        self.model, self.interventions, self.gate, self.handoff = model, interventions, gate.on(model.dtype), handoff
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
        self,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        streamer: BaseStreamer | None,
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
        if len(self.open_rows):  # gates that count tokens close before the forward pass
            self.closing_positions[self.open_rows] = self.step
            self._leave(torch.zeros_like(self.open_rows, dtype=torch.bool))
        if self.step:
            self.model_kwargs["past_key_values"] = _moved(self.model_kwargs["past_key_values"], self.final_cache)

    def _forward(self) -> torch.Tensor:
        """Returns raw logits ``(survivors + companions, vocabulary)`` of the next token."""
        positions = self.interventions.positions
        acts_on_prompt, acts_on_generated = positions != "generated", positions != "prompt"
        is_prefill = self.step == 0
        # If the interventions do not act on the prompt, it is read once for both models.
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
            acting = self._acting(rows)
            if is_prefill and positions == "solution":  # of the prompt only its last token
                columns = torch.arange(self.input_ids.shape[1], device=rows.device)
                acting = acting & intervention_mask(columns - len(columns), positions)
            with self.interventions.intervening(acting):
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
        """Marks the rows that interventions act on, ``(rows, 1)``: companions, or with ``keep`` the open survivors."""
        acts = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        if self.handoff == "base":
            acts[len(self.all_rows) :] = True
        else:
            acts[self.open_rows] = True
        return acts[:, None]

    def _gated_logits(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns raw logits of the model that draws, ``(rows, vocabulary)``, and which open rows stay open."""
        survivors, companions = logits.split([len(self.all_rows), len(self.open_rows)])
        if self.handoff == "base":
            base, mod = survivors[self.open_rows], companions
        else:
            base, mod = companions, survivors[self.open_rows]
        direction = self.gate.direction if isinstance(self.gate, KLGate) else "mod||base"
        kl = kl_divergence(mod, base, direction)
        if kl.isnan().any():  # infinity is valid: one of the two models excludes a token
            raise NotFiniteLogits(int(self.open_rows[kl.isnan()][0]))
        if self.cumulative_kl is None:
            self.cumulative_kl = torch.zeros(len(survivors), dtype=kl.dtype, device=kl.device)
        self.cumulative_kl[self.open_rows] += self.gate.counted(kl)
        self.kl.append(torch.full_like(self.cumulative_kl, torch.nan).index_copy(0, self.open_rows, kl))
        stays_open = self.gate.stays_open(self.step, self.cumulative_kl[self.open_rows])
        drawing = torch.where(stays_open[:, None], mod, base)
        return survivors.index_copy(0, self.open_rows, drawing), stays_open

    def _draw(self, logits: torch.Tensor, logits_processor: LogitsProcessorList) -> torch.Tensor:
        """Draws tokens as stock sampling does, so that the same seed gives the same tokens."""
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
        """Removes the companions of open rows that do not ``stay`` from the batch."""
        if stay.all():
            return
        companions = len(self.all_rows) + stay.nonzero().squeeze(1)
        self.model_kwargs["past_key_values"].batch_select_indices(torch.cat([self.all_rows, companions]))
        self.open_rows = self.open_rows[stay]

    def output(self, rest: Any) -> Any:
        """Joins the tokens drawn in pairs and the ``rest`` drawn by stock sampling into stock ``generate``'s output."""
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
            dead_band=getattr(self.gate, "dead_band", None) or None,
        )


def _select(value: Any, rows: torch.Tensor, batch_size: int) -> Any:
    """Selects rows of tensors with one row for each of the batch; returns anything else unchanged."""
    is_by_row = isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == batch_size
    return value[rows] if is_by_row else value


def _growing(cache: Cache, model: PreTrainedModel) -> Cache:
    """Returns a cache from which rows can be removed: the given one, or a dynamic one in place of a static one."""
    kinds = {type(layer) for layer in cache.layers}
    if cache.offloading or not kinds <= {DynamicLayer, DynamicSlidingWindowLayer, StaticLayer}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise UserError(f"a gate goes with dynamic caches, and static ones without sliding windows; got {names}")
    return DynamicCache(config=model.config.get_text_config(decoder=True)) if StaticLayer in kinds else cache


def _moved(cache: Cache, final_cache: Cache) -> Cache:
    """Returns ``cache``, copied into ``final_cache`` if that is another object."""
    if cache is final_cache:
        return cache
    for index, layer in enumerate(cache.layers):
        final_cache.update(layer.keys, layer.values, index)
    return final_cache
