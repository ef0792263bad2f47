"""Stops a completion at given texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria


class StopTexts(StoppingCriteria):  # type: ignore[misc]
    """Ends a row once its drawn text contains one of ``stops``, within one call of ``generate``.

    transformers' ``stop_strings`` also see the prompt, read the whole vocabulary at each call, and fail with
    tokenizers that cannot write every letter.
    """

    def __init__(self, stops: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        self.stops, self.tokenizer = stops, tokenizer
        self._window = max(map(len, stops)) + 8  # one letter per token, and some tokens without letters
        self._first: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        length = input_ids.shape[1]
        if self._first is None:
            self._first = length - 1
        tail = input_ids[:, max(self._first, length - self._window) :].tolist()
        texts = self.tokenizer.batch_decode(tail, skip_special_tokens=True)
        return torch.tensor([any(stop in text for stop in self.stops) for text in texts], device=input_ids.device)
