"""Reads texts under teacher forcing: each token's distribution under base, adapter and gated decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    """A text after a prompt, with the end token.

    Attributes:
        id: The problem's id.
        prompt: Token ids of the prompt.
        token_ids: Token ids of the text, ``y_1..y_n``.
    """

    id: str
    prompt: torch.Tensor
    token_ids: Sequence[int]


@dataclass(frozen=True)
class TextLogits:
    """Raw logits ``(token, vocabulary)`` of a text's tokens under the three decoders of `text_logits`.

    Attributes:
        closing_position: Position at which the gate closes along the text; None if it stays open.
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
) -> Iterator[TextLogits]:
    """Yields each token's logits text by text, under the base, the adapter always on, and decoding under a gate.

    ``prefix`` holds `gated_logits`. With gate ``prompt`` interventions act on the prompt, also for ``always_on``.

    Args:
        model: The base.
        interventions: The adapter's interventions.
        gate, handoff: Gate and hand-off of ``prefix``.
        texts: A batch of texts.
        pad_token: Padding token, which no text attends to.

    Raises:
        UserError: The gate is ``prompt`` but the adapter does not act on prompts.
    """
    passes = _Passes(model, interventions, gate, handoff, texts, pad_token)
    for row, (position, prefix) in enumerate(passes.gated()):
        yield TextLogits(position, passes.off[row, : len(prefix)], passes.on[row, : len(prefix)], prefix)


@torch.no_grad()
def gated_logits(
    model: PreTrainedModel,
    interventions: HookedReftModel,
    gate: Gate,
    handoff: Handoff,
    texts: Sequence[ForcedText],
    pad_token: int,
) -> Iterator[torch.Tensor]:
    """Yields each token's logits under gated decoding, ``(token, vocabulary)``, text by text.

    The gate decides by the tokens before a token, so it runs along the text, whoever wrote it: with ``D_t`` of this
    text, tokens before the closing position are the intervened model's, and the others are

    - with ``handoff="base"`` the base's: it reads prompt and prefix itself;
    - with ``"keep"`` those of a pass with interventions on the prompt and the tokens read before the gate closed,
      except that the token at which a divergence closed it is the base's.

    Only passes that some token needs are run. Arguments and errors are those of `text_logits`.
    """
    for _, prefix in _Passes(model, interventions, gate, handoff, texts, pad_token).gated():
        yield prefix


class _Passes:
    """A batch's forward passes, each run on first use: raw logits ``(row, token, vocabulary)``."""

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
        self.inputs, place = _teacher_forced(texts, pad_token, model.device)
        self.ids = [text.id for text in texts]
        self.lengths = [len(text.token_ids) for text in texts]
        self.width = int((place < 0).sum())
        self.may_act = intervention_mask(place, acting_positions(gate, interventions))

    @cached_property
    def off(self) -> torch.Tensor:
        """The base's."""
        return self._logits(torch.zeros_like(self.may_act))

    @cached_property
    def on(self) -> torch.Tensor:
        """Logits of the intervened model."""
        return self._logits(self.may_act)

    def gated(self) -> Iterator[tuple[int | None, torch.Tensor]]:
        """Yields by text the gate's closing position and the logits of decoding under it, ``(token, vocabulary)``.

        One text at a time: with a vocabulary of 152,000 the logits of 16 answers of 300 tokens take 3 GB.
        """
        closings = [closing(self.gate, self._divergence(row)) for row in range(len(self.lengths))]
        if all(position is None for position, _ in closings):
            yield from ((None, self.on[row, :length]) for row, length in enumerate(self.lengths))
            return
        after = self.off if self.handoff == "base" else self._kept([steps for _, steps in closings])
        between = self.off if isinstance(self.gate, KLGate) else after  # a count reads no divergence
        for row, (length, (position, steps)) in enumerate(zip(self.lengths, closings, strict=True)):
            closes_at = length if position is None else position
            parts = [self.on[row, :closes_at], between[row, closes_at:steps], after[row, steps:length]]
            yield position, torch.cat(parts)

    def _divergence(self, row: int) -> torch.Tensor:
        """Returns ``D_t`` along a text; zeros if the gate does not need it."""
        length = self.lengths[row]
        if not isinstance(self.gate, KLGate):
            return torch.zeros(length)
        return kl_divergence(self.on[row, :length], self.off[row, :length], self.gate.direction).cpu()

    def _kept(self, steps: Sequence[int]) -> torch.Tensor:
        """Returns the base's logits on a cache that interventions changed for this many steps of each text."""
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
    """Returns the first t with ``C_t`` over the gate's threshold, or with t over its count; None without one.

    Args:
        gate: A gate that draws the first tokens from the intervened model.
        kl: ``D_t: (token,)`` along a text.

    Returns:
        The closing position, and the number of tokens whose divergence was read: a gate that counts closes before
        reading it, a gate that measures divergence after.
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
    """Returns the base's inputs ``(row, column)``, and ``(1, column)``, a column's place (`interventions.positions`).

    Prompts are padded on the left and texts on the right, so all texts start in the same column. The last token of a
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
    return inputs, torch.arange(attention_mask.shape[1], device=device)[None] - prompts.shape[1]
