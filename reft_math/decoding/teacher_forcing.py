"""Texts read under teacher forcing: what each token would have been drawn from, by base, adapter and gated decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import PreTrainedModel

from interventions.gates import Gate, KLGate, kl_divergence
from interventions.generation import acting_positions
from interventions.hooked import HookedReftModel
from interventions.logits import check_logits
from interventions.pairs import Handoff
from interventions.positions import intervention_mask
from reft_math.data.prefix import pad_left


@dataclass(frozen=True)
class ForcedText:
    """What follows a prompt, the end token included.

    Attributes:
        id: The problem's.
        prompt: Token ids.
        token_ids: ``y_1..y_n``.
    """

    id: str
    prompt: torch.Tensor
    token_ids: Sequence[int]


@dataclass(frozen=True)
class TextLogits:
    """Raw logits ``(token, vocabulary)`` of a text's tokens under the three decoders of `text_logits`.

    Attributes:
        closing_position: Of the gate along the text; None where it stays open.
    """

    closing_position: int | None
    base: torch.Tensor
    always_on: torch.Tensor
    prefix: torch.Tensor


@torch.no_grad()
def text_logits(
    model: PreTrainedModel,
    interventions: HookedReftModel,
    gate: Gate,
    handoff: Handoff,
    texts: Sequence[ForcedText],
    pad_token: int,
) -> list[TextLogits]:
    """What each token of each text is drawn from, under the base, the adapter always on, and decoding under a gate.

    ``prefix`` is that of `gated_logits`. Under gate ``prompt`` interventions act on the prompt, for ``always_on`` too.

    Args:
        model: The base.
        interventions: The adapter's.
        gate, handoff: Of ``prefix``.
        texts: A batch.
        pad_token: Padding, on no text's path.

    Raises:
        UserError: Gate ``prompt`` and an adapter that does not act there.
    """
    passes = _Passes(model, interventions, gate, handoff, texts, pad_token)
    return [
        TextLogits(position, passes.off[row, : len(prefix)], passes.on[row, : len(prefix)], prefix)
        for row, (position, prefix) in enumerate(passes.gated())
    ]


@torch.no_grad()
def gated_logits(
    model: PreTrainedModel,
    interventions: HookedReftModel,
    gate: Gate,
    handoff: Handoff,
    texts: Sequence[ForcedText],
    pad_token: int,
) -> list[torch.Tensor]:
    """What decoding under the gate draws each token of each text from, ``(token, vocabulary)`` by text.

    The gate decides by what stands before a token, so it is run along the text, whoever wrote that: with ``D_t`` of
    this very text, tokens before its closing position are the intervened model's, and the others are

    - with ``handoff="base"`` the base's: it reads prompt and prefix itself;
    - with ``"keep"`` those of a pass with interventions on the prompt and the tokens that were read before the gate
      closed, except that the token at which a divergence closed it is the base's.

    Passes that no token of these texts needs are not made. Arguments and errors are those of `text_logits`.
    """
    return [prefix for _, prefix in _Passes(model, interventions, gate, handoff, texts, pad_token).gated()]


class _Passes:
    """A batch's forward passes, each when it is asked for first: raw logits ``(row, token, vocabulary)``."""

    def __init__(
        self,
        model: PreTrainedModel,
        interventions: HookedReftModel,
        gate: Gate,
        handoff: Handoff,
        texts: Sequence[ForcedText],
        pad_token: int,
    ) -> None:
        self.model, self.interventions, self.gate, self.handoff = model, interventions, gate.on(model.dtype), handoff
        self.inputs, is_generated = _teacher_forced(texts, pad_token, model.device)
        self.ids = [text.id for text in texts]
        self.lengths = [len(text.token_ids) for text in texts]
        self.width = int((~is_generated).sum())
        self.may_act = intervention_mask(is_generated, acting_positions(gate, interventions))

    @cached_property
    def off(self) -> torch.Tensor:
        """The base's."""
        return self._logits(torch.zeros_like(self.may_act))

    @cached_property
    def on(self) -> torch.Tensor:
        """The intervened model's."""
        return self._logits(self.may_act)

    def gated(self) -> list[tuple[int | None, torch.Tensor]]:
        """By text the gate's closing position and the logits of decoding under it, ``(token, vocabulary)``."""
        closings = [closing(self.gate, self._divergence(row)) for row in range(len(self.lengths))]
        if all(position is None for position, _ in closings):
            return [(None, self.on[row, :length]) for row, length in enumerate(self.lengths)]
        after = self.off if self.handoff == "base" else self._kept([steps for _, steps in closings])
        between = (
            self.off if isinstance(self.gate, KLGate) else after
        )  # a count reads no divergence: nothing is between
        found = []
        for row, (length, (position, steps)) in enumerate(zip(self.lengths, closings, strict=True)):
            closes_at = length if position is None else position
            parts = [self.on[row, :closes_at], between[row, closes_at:steps], after[row, steps:length]]
            found.append((position, torch.cat(parts)))
        return found

    def _divergence(self, row: int) -> torch.Tensor:
        """``D_t`` along a text; zeros where the gate does not ask."""
        length = self.lengths[row]
        if not isinstance(self.gate, KLGate):
            return torch.zeros(length)
        return kl_divergence(self.on[row, :length], self.off[row, :length], self.gate.direction).cpu()

    def _kept(self, steps: Sequence[int]) -> torch.Tensor:
        """The base's on the cache that interventions changed for as many steps of each text."""
        read = torch.tensor(steps, device=self.model.device)[:, None]
        tokens = torch.arange(self.may_act.shape[1], device=self.model.device)[None] - self.width
        # Token j is read at step j + 1, the prompt at step 0.
        return self._logits(self.may_act & (read > 0) & (tokens < read - 1))

    def _logits(self, acts: torch.Tensor) -> torch.Tensor:
        with self.interventions.intervening(acts):
            found: torch.Tensor = self.model(**self.inputs, use_cache=False, logits_to_keep=max(self.lengths)).logits
        check_logits(found, self.ids)
        return found


def closing(gate: Gate, kl: torch.Tensor) -> tuple[int | None, int]:
    """The first t with ``C_t`` over the gate's threshold, or with t over its count; None without one.

    Args:
        gate: Any that draws the first tokens from the intervened model.
        kl: ``D_t: (token,)`` along a text.

    Returns:
        The closing position, and how many tokens' divergence was read: a count closes before, a divergence after it.
    """
    cumulative = kl.new_zeros(1)
    for step, divergence in enumerate(kl):
        if not gate.allows(step):
            return step, step
        cumulative = cumulative + gate.counted(divergence)
        if not gate.stays_open(step, cumulative):
            return step, step + 1
    return None, len(kl)


def _teacher_forced(
    texts: Sequence[ForcedText], pad_token: int, device: torch.device
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The base's inputs ``(row, column)``, and ``(1, column)``, true at a text's columns.

    Prompts are padded on the left and texts on the right: every text starts in the same column. The last token of a
    text predicts nothing and is left out.
    """
    read = [torch.tensor(list(text.token_ids[:-1])).long() for text in texts]
    prompts = pad_left([text.prompt for text in texts], pad_token)
    rest = torch.nn.utils.rnn.pad_sequence(read, batch_first=True, padding_value=pad_token)
    mask = pad_left([torch.ones_like(text.prompt) for text in texts], 0)
    rest_mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in read], batch_first=True)
    attention_mask = torch.cat([mask, rest_mask], dim=1).to(device)
    inputs = {
        "input_ids": torch.cat([prompts, rest], dim=1).to(device),
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(dim=1) - 1).clamp(min=0),
    }
    return inputs, torch.arange(attention_mask.shape[1], device=device)[None] >= prompts.shape[1]
