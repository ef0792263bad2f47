"""The policy over prefixes: the base with its interventions draws the first K tokens, each prompt read once.

All G prefixes of a problem share its prompt. One forward pass reads the P prompts, the cache is repeated G times, and
the prefixes go on from there: P·W + P·G·K tokens instead of P·G·(W + K).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils import parametrize
from transformers import DynamicCache

from interventions.hooked import HookedReftModel
from interventions.logits import check_logits
from interventions.positions import BEHIND_PROMPTS
from reft_math.data.prefix import IGNORE_INDEX, pad_left
from reft_math.training.packing import logits_at


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts, padded on the left.

    Attributes:
        input_ids, attention_mask: ``(problem, column)`` int64.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], pad_token_id: int, device: torch.device) -> Prompts:
        tensors = [torch.tensor(row) for row in rows]
        masks = [torch.ones_like(row) for row in tensors]
        return cls(pad_left(tensors, pad_token_id).to(device), pad_left(masks, 0).to(device))


class _Reader:
    """Reads prompts, but for their last tokens, once; then tokens of ``samples`` rows for each, through one cache.

    Args:
        acting: Whether interventions act; False lets the base read alone.
    """

    def __init__(self, model: HookedReftModel, prompts: Prompts, samples: int, acting: bool) -> None:
        self.model, self.acting = model, acting
        self.width = prompts.input_ids.shape[1]
        self.cache = DynamicCache(config=model.model.config.get_text_config(decoder=True))
        self.mask = prompts.attention_mask[:, :0]
        if self.width > 1:
            self._read(prompts.input_ids[:, :-1], prompts.attention_mask[:, :-1], is_prompt=True)
            self.cache.batch_repeat_interleave(samples)
        self.mask = self.mask.repeat_interleave(samples, dim=0)
        self.last = prompts.input_ids[:, -1:].repeat_interleave(samples, dim=0)

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns the logits after each of ``tokens: (row, n)``, ``(row, n, vocabulary)``."""
        return self._read(tokens, torch.ones_like(tokens))

    def _read(self, tokens: torch.Tensor, mask: torch.Tensor, is_prompt: bool = False) -> torch.Tensor:
        base: Any = self.model.model
        self.mask = torch.cat([self.mask, mask], dim=1)
        # Where interventions leave these tokens alone, no gradient flows through them.
        acts = self.acting and not (is_prompt and self.model.positions in BEHIND_PROMPTS)
        places = torch.arange(tokens.numel(), device=tokens.device).view_as(tokens)
        with (
            self.model.decoding(self.width) if acts else self.model.intervening(None),
            logits_at(base, places[:1, :1] if is_prompt else places),
        ):
            output = base(
                input_ids=tokens,
                attention_mask=self.mask,
                position_ids=(self.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -tokens.shape[1] :],
                past_key_values=self.cache,
                use_cache=True,
            )
        logits: torch.Tensor = output.logits
        return logits


def prefix_logits(
    model: HookedReftModel, prompts: Prompts, prefixes: torch.Tensor, acting: bool = True
) -> torch.Tensor:
    """Returns the logits that predict each token of each prefix, ``(problem·G, K, vocabulary)``.

    Args:
        model: The policy.
        prompts: P prompts.
        prefixes: ``(P·G, K)`` int64, a problem's G rows next to each other; `IGNORE_INDEX` after a prefix's end.
        acting: False lets the base predict alone.
    """
    reader = _Reader(model, prompts, len(prefixes) // len(prompts.input_ids), acting)
    tokens = prefixes.where(prefixes != IGNORE_INDEX, 0)[:, :-1]
    return reader.read(torch.cat([reader.last, tokens], dim=1))


@torch.no_grad()
def draw_prefixes(
    model: HookedReftModel,
    prompts: Prompts,
    samples: int,
    k: int,
    end_token_ids: Sequence[int],
    temperature: float | None,
    generator: torch.Generator | None = None,
    names: Sequence[str] | None = None,
) -> torch.Tensor:
    """Draws G = ``samples`` prefixes of each prompt: ``(P·G, K)`` int64, `IGNORE_INDEX` after an end token.

    Args:
        temperature: Divides the logits; None takes the likeliest token.
        generator: Draws the tokens; torch's own by default.
        names: A name for each row, for errors.
    """
    ends = torch.tensor(list(end_token_ids), device=prompts.input_ids.device)
    drawn: list[torch.Tensor] = []
    with parametrize.cached():  # LoReFT's R once
        reader = _Reader(model, prompts, samples, acting=True)
        token, ended = reader.last[:, 0], torch.zeros_like(reader.last[:, 0], dtype=torch.bool)
        for _ in range(k):
            logits = reader.read(token[:, None])[:, 0]
            check_logits(logits, names)
            if temperature is None:
                token = logits.argmax(dim=-1)
            else:
                shares = (logits.float() / temperature).softmax(dim=-1)
                token = torch.multinomial(shares, num_samples=1, generator=generator).squeeze(1)
            drawn.append(token.where(~ended, IGNORE_INDEX))
            ended = ended | torch.isin(token, ends)
    return torch.stack(drawn, dim=1)
