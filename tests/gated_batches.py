"""Batches, interventions and settings that tests of gated generation have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from interventions import PrefixReftConfig, PrefixReftModel, get_prefix_reft_model

TinyModel = Callable[..., PreTrainedModel]
PAD = 0
UNDRAWN = 64  # an end token beyond the vocabulary: with one, rows that have ended otherwise are padded
PROMPTS = [[5, 9, 33, 41, 17, 8, 60], [7, 21, 3], [12]]
WIDTH = 7
BUDGET = 10
ENDLESS: dict[str, Any] = {"max_new_tokens": BUDGET, "eos_token_id": None}
GATES = ["off", "always", "prompt", "tokens:1", "tokens:4", "kl:0", "kl:0.5", "kl:1.2,max=5", "kl:inf"]
PAIRED = GATES[3:]  # gates that run the two models side by side


def randomised(model: PreTrainedModel, seed: int = 1, scale: float = 0.2, **config: Any) -> PrefixReftModel:
    """With LoReFT in the residual stream, where not told otherwise: it changes the text from the first token on."""
    torch.manual_seed(seed)  # LoReFT starts from random directions
    config = {"intervention": "loreft", "site": "block", **config}
    reft_model = get_prefix_reft_model(model, PrefixReftConfig(**config))
    with torch.no_grad():
        for parameter in reft_model.parameters():
            parameter.add_(torch.randn(parameter.shape) * scale)
    return reft_model


def batch(prompts: Sequence[list[int]] = PROMPTS, pad: int = PAD) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    padding = [width - len(prompt) for prompt in prompts]
    return {
        "input_ids": torch.tensor([[pad] * gap + prompt for gap, prompt in zip(padding, prompts, strict=True)]),
        "attention_mask": torch.tensor([[0] * gap + [1] * (width - gap) for gap in padding]),
    }


def watched(reft_model: PrefixReftModel, gate: Any, prompts: Sequence[list[int]] = PROMPTS, **options: Any) -> Any:
    """What a gate saw on the way."""
    settings = {**ENDLESS, "return_dict_in_generate": True, **options}
    return reft_model.generate(**batch(prompts), gate=gate, **settings)


def seeded(generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    torch.manual_seed(11)
    return generate(*args, **kwargs)


def ends_of(sequences: torch.Tensor, *places: tuple[int, int]) -> list[int]:
    """The tokens that rows drew at these steps, to end them there."""
    return [int(sequences[row, WIDTH + step]) for row, step in places]


@contextmanager
def rows_run(model: PreTrainedModel) -> Iterator[list[int]]:
    """Rows of every forward pass, which must be those of the cache after it."""
    rows: list[int] = []

    def record(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        rows.append(len(kwargs["input_ids"]))
        assert {len(layer.keys) for layer in output.past_key_values.layers} == {rows[-1]}

    handle = model.register_forward_hook(record, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()
