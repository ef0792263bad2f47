"""Reads each prompt once: trains on the tokens of solutions behind their prompts' keys and values.

Interventions at positions ``solution`` or ``generated`` leave a prompt's ``x_1 … x_{m-1}`` alone: their keys and values
are the base's in every epoch. The base reads them once, without gradient; a step reads ``x_m, y_1 … y_{n-1}`` behind
them, whose logits predict ``y_1 … y_n``. Loss and gradients are those of reading prompt and targets together.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from interventions.positions import Positions, intervention_mask
from interventions.sites import running_device
from reft_math.commands.processes import process_state
from reft_math.data.prefix import IGNORE_INDEX, pad_left
from reft_math.models.sharding import is_sharded
from reft_math.training.memory import cache_bytes, decoder_of

_States = list[tuple[torch.Tensor, torch.Tensor]]  # by layer, keys and values: ``(token, head, size)``
GIB = 2**30


@dataclass(frozen=True)
class BehindPrompts:
    """Collates rows of a `reft_math.data.prefix.PrefixDataset` for `PromptCache`, each on its own line.

    Returns:
        ``prompts``: each row's prompt without its last token; ``input_ids, attention_mask, position_ids,
        intervention_mask, targets``: ``(row, target)``; ``logits_at: (all targets,)``, as of
        `reft_math.data.prefix.PrefixCollator`.
    """

    pad_token_id: int
    positions: Positions = "generated"

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        targets = [torch.tensor(row["target_ids"], dtype=torch.int64) for row in rows]
        padded = pad_sequence(targets, batch_first=True, padding_value=IGNORE_INDEX)
        is_target, columns = padded != IGNORE_INDEX, torch.arange(padded.shape[1])
        last = torch.tensor([[row["prompt_ids"][-1], len(row["prompt_ids"]) - 1] for row in rows])
        return {
            "prompts": [row["prompt_ids"][:-1] for row in rows],
            "input_ids": torch.cat([last[:, :1], padded[:, :-1]], dim=1).where(is_target, self.pad_token_id),
            "attention_mask": is_target.long(),
            "position_ids": (last[:, 1:] + columns).where(is_target, 0),
            "intervention_mask": intervention_mask(columns - 1, self.positions).expand_as(padded),
            "targets": padded,
            "logits_at": is_target.flatten().nonzero()[:, 0],
        }


class PromptCache:
    """Keys and values of prompts, kept in the machine's memory.

    Prompts are kept in the order in which rows first need them, as long as there is room; others are read anew each
    time. Equal prompts share an entry.

    Args:
        model: The frozen base.
        limit: Bytes that may be kept.
        head: Tokens that every prompt begins with and is longer than; they are read once for all.
        together: Read a batch's new prompts in one pass. Else one by one, so that their last bits do not depend on
            which others are new: in a resumed run other ones are.

    Attributes:
        held: Bytes that are kept.
    """

    def __init__(self, model: PreTrainedModel, limit: int, head: Sequence[int] = (), together: bool = False) -> None:
        self.model, self.limit, self.head, self.together = model, limit, tuple(head), together
        self.held = 0
        self._kept: dict[tuple[int, ...], _States] = {}
        self._head: _States = []
        self._devices: list[torch.device] = []

    def before(self, prompts: Sequence[Sequence[int]], attention_mask: torch.Tensor) -> dict[str, Any]:
        """Returns arguments that let the base read tokens behind the prompts.

        Args:
            prompts: Each row's prompt.
            attention_mask: ``(row, target)``, of the tokens behind it.

        Returns:
            ``past_key_values``: a new cache of the prompts, padded on the left; ``attention_mask``: over both.
        """
        rows = [tuple(prompt) for prompt in prompts]
        states = self._find(rows)
        mask = pad_left([attention_mask.new_ones(len(row)) for row in rows], 0)
        return {
            "past_key_values": self._stack([states[row] for row in rows]),
            "attention_mask": torch.cat([mask, attention_mask], dim=1),
        }

    def _find(self, rows: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], _States]:
        """Returns the rows' keys and values; reads those that are not kept, and keeps what fits."""
        found = {row: self._kept[row] for row in rows if row in self._kept}
        new = [row for row in dict.fromkeys(rows) if row not in found]
        if new and self.head and not self._head:
            (self._head,) = self._read([self.head])
        for group in [new] if new and self.together else [[row] for row in new]:
            for row, states in zip(group, self._read(group), strict=True):
                found[row] = states
                size = sum(keys.nbytes + values.nbytes for keys, values in states)
                if self.held + size <= self.limit:
                    self._kept[row] = states
                    self.held += size
        return found

    @torch.no_grad()
    def _read(self, rows: Sequence[tuple[int, ...]]) -> list[_States]:
        """Reads rows behind the head. Padding at their ends needs no mask under causal attention."""
        cache = self._stack([self._head] * len(rows)) if self._head else DynamicCache()
        first = cache.get_seq_length()
        # One more token, so that there is one to read where a prompt has no other.
        ids = pad_sequence([torch.tensor([*row[first:], 0]) for row in rows], batch_first=True)
        device = running_device(self.model.get_input_embeddings())
        self.model.base_model(input_ids=ids.to(device), past_key_values=cache, use_cache=True)
        self._devices = [layer.keys.device for layer in cache.layers]

        def own(states: torch.Tensor, row: int) -> torch.Tensor:
            return states[row, :, : len(rows[row])].transpose(0, 1).to("cpu", copy=True)

        return [[(own(layer.keys, row), own(layer.values, row)) for layer in cache.layers] for row in range(len(rows))]

    def _stack(self, rows: Sequence[_States]) -> DynamicCache:
        """Copies rows into a cache, padded on the left."""
        return DynamicCache(
            [
                tuple(pad_left(parts, 0).transpose(1, 2).to(device) for parts in zip(*states, strict=True))
                for device, *states in zip(self._devices, *rows, strict=True)
            ]
        )


def make_prompt_cache(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], gibibytes: float, checkpointing: bool
) -> PromptCache | None:
    """Returns a cache for the prompts, or None where they must be read in every step; says on stderr which.

    Args:
        model: The base.
        prompts: Tokens of each row's prompt.
        gibibytes: The cache's limit.
        checkpointing: Whether layers are recomputed in the backward pass.
    """
    why_not = _why_not(model, checkpointing)
    if process_state().is_main_process:
        about = f"prompts are read in every step: {why_not}"
        print(about if why_not else prompts_line(model, prompts, gibibytes), file=sys.stderr)
    if why_not:
        return None
    cut = [list(prompt[:-2]) for prompt in prompts]
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(min(cut), max(cut), strict=False))
    head = [token for token, _ in shared]
    return PromptCache(model, int(gibibytes * GIB), head, together=model.device.type != "cpu")


def _why_not(model: PreTrainedModel, checkpointing: bool) -> str | None:
    if is_sharded(model):
        return "all processes must run a sharded base equally often"
    if checkpointing:
        return "layers that are recomputed do not read a cache"
    layers = DynamicCache(config=model.config).layers
    if all(type(layer) is DynamicLayer for layer in layers) and reads_behind_prompts(model):
        return None
    return "this model's layers have windows, states other than keys and values, or dropout"


def prompts_line(model: PreTrainedModel, prompts: Sequence[Sequence[int]], gibibytes: float) -> str:
    """Says how large the prompts' keys and values are, and how many bytes of them are kept."""
    tokens = sum(len(prompt) - 1 for prompt in {tuple(prompt) for prompt in prompts})
    size = cache_bytes(decoder_of(model.config, model.dtype.itemsize), 1, tokens) / GIB
    return f"prompts are read once: their keys and values take {size:.3g} GiB, up to {gibibytes:g} GiB are kept"


@torch.no_grad()
def reads_behind_prompts(model: PreTrainedModel) -> bool:
    """Returns whether the tokens of rows behind kept prompts have the logits of one pass over each whole row.

    It holds for transformers' decoders with plain attention and without dropout; any other model is found out by this
    trial on two rows, in training mode.
    """
    was_training = model.training
    model.train()
    vocabulary, generator = model.config.get_text_config().vocab_size, torch.Generator().manual_seed(0)
    device = running_device(model.get_input_embeddings())
    head, *texts = (torch.randint(vocabulary, (size,), generator=generator).tolist() for size in (2, 2, 5, 3, 3))
    rows = [{"prompt_ids": head + texts[row], "target_ids": texts[row + 2]} for row in (0, 1)]
    batch = BehindPrompts(0)(rows)
    placed = {name: batch[name].to(device) for name in ("input_ids", "position_ids", "attention_mask")}
    placed |= PromptCache(model, 0, head, together=True).before(batch["prompts"], placed["attention_mask"])
    behind = model(**placed, use_cache=False).logits.float()
    inputs = [torch.tensor([row["prompt_ids"] + row["target_ids"][:-1]], device=device) for row in rows]
    whole = torch.cat([model(input_ids=ids, use_cache=False).logits[:, -3:].float() for ids in inputs])
    model.train(was_training)
    return bool((behind - whole).std() <= 0.05 * whole.std())  # half precision rounds by about a hundredth
