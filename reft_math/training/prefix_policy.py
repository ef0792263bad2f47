"""The policy over prefixes: the base with its interventions draws the first K tokens, each prompt read once.

All G prefixes of a problem share its prompt. One forward pass reads the P prompts, the cache is repeated G times, and
the prefixes go on from there: P·W + P·G·K tokens instead of P·G·(W + K).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch.nn.utils import parametrize
from transformers import DynamicCache

from interventions.hooked import HookedReftModel
from interventions.logits import check_logits
from interventions.positions import Positions
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
    """Reads prompts once, then tokens of ``samples`` rows for each, through one cache."""

    def __init__(self, model: HookedReftModel, prompts: Prompts, samples: int) -> None:
        self.base = model.model
        self.cache = DynamicCache(config=self.base.config.get_text_config(decoder=True))
        self.mask = prompts.attention_mask
        self.first = self._read(prompts.input_ids, last_only=True)[:, 0].repeat_interleave(samples, dim=0)
        self.cache.batch_repeat_interleave(samples)
        self.mask = self.mask.repeat_interleave(samples, dim=0)

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns the logits after each of ``tokens: (row, n)``, ``(row, n, vocabulary)``."""
        self.mask = torch.cat([self.mask, torch.ones_like(tokens)], dim=1)
        return self._read(tokens)

    def _read(self, tokens: torch.Tensor, last_only: bool = False) -> torch.Tensor:
        rows, columns = tokens.shape
        positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -columns:]
        places = torch.arange(rows * columns, device=tokens.device).view(rows, columns)
        with logits_at(self.base, places[:, -1:] if last_only else places):
            output = self.base(
                input_ids=tokens,
                attention_mask=self.mask,
                position_ids=positions,
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
    samples = len(prefixes) // len(prompts.input_ids)
    tokens = prefixes.where(prefixes != IGNORE_INDEX, 0)[:, :-1]
    with _acting(model, prompts, model.positions if acting else None):
        reader = _Reader(model, prompts, samples)
        first = reader.first[:, None]
        return torch.cat([first, reader.read(tokens)], dim=1) if tokens.shape[1] else first


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
    with _acting(model, prompts, model.positions), parametrize.cached():  # LoReFT's R once
        reader = _Reader(model, prompts, samples)
        logits = reader.first
        ended = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        for step in range(k):
            check_logits(logits, names)
            if temperature is None:
                token = logits.argmax(dim=-1)
            else:
                shares = (logits.float() / temperature).softmax(dim=-1)
                token = torch.multinomial(shares, num_samples=1, generator=generator).squeeze(1)
            drawn.append(token.where(~ended, IGNORE_INDEX))
            ended = ended | torch.isin(token, ends)
            if step + 1 < k:
                logits = reader.read(token[:, None])[:, 0]
    return torch.stack(drawn, dim=1)


def _acting(model: HookedReftModel, prompts: Prompts, positions: Positions | None) -> AbstractContextManager[None]:
    if positions is None:
        return model.intervening(None)
    return model.decoding(prompts.input_ids.shape[1], positions)
