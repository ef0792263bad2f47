"""Edits of a step's tokens within vLLM's modules, and which of them belong to which request.

vLLM runs the tokens of all requests of a step flat, ``(tokens, width)``. It computes some of our sites together:

| site                         | vLLM's module         | part of its output                           |
| ---------------------------- | --------------------- | -------------------------------------------- |
| `ffn_up`                     | `mlp.gate_up_proj`    | the second half                              |
| `ffn_down`                   | `mlp.down_proj`       | all                                          |
| `attn_q`, `attn_k`, `attn_v` | `self_attn.qkv_proj`  | queries, then keys, then values              |
| `attn_o`                     | `self_attn.o_proj`    | all                                          |
| `block`                      | the layer itself      | the sum of the two tensors that it returns   |

Under tensor parallelism `ffn_up` and the three of attention hold the rank's slice. RED and biases are sliced with it;
LoReFT and DiReFT read the whole representation, which the ranks gather for the rows that they edit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from interventions.positions import Positions, intervention_mask
from reft_math.errors import UserError

Hidden = torch.Tensor
MODULES = {
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_q": "self_attn.qkv_proj",
    "attn_k": "self_attn.qkv_proj",
    "attn_v": "self_attn.qkv_proj",
    "attn_o": "self_attn.o_proj",
    "block": "",
}
# Layers of vLLM whose modules are named so, whose outputs are whole on every rank but where it says "slice", and that
# return the residual stream as a sum of two.
LAYERS = (
    *("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"),
    *("GemmaDecoderLayer", "Gemma2DecoderLayer", "Gemma3DecoderLayer"),
)
SLICED = ("ffn_up", "attn_q", "attn_k", "attn_v")


@dataclass(frozen=True)
class Asked:
    """What a request asks of the worker, in ``SamplingParams.extra_args["reft"]``.

    Attributes:
        adapter: Name of the adapter that edits it; None leaves it to the base.
        positions: Where the adapter acts.
        prompt_length: Tokens before the first generated one, whichever stage this is.
        key: Name under which hidden states are kept; None keeps none.
        keep_from: The first position whose hidden state is kept.
    """

    adapter: str | None
    positions: Positions
    prompt_length: int
    key: str | None
    keep_from: int


@dataclass(frozen=True)
class Row:
    """A request's tokens in a step: ``count`` of them, flat from index ``start``, from position ``position`` on."""

    asked: Asked
    start: int
    count: int
    position: int


def acting_tokens(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Returns for each adapter the flat indices of the tokens that it edits in this step."""
    indices: dict[str, list[torch.Tensor]] = {}
    for row in rows:
        if row.asked.adapter is not None:
            offsets = torch.arange(row.count)
            acts = intervention_mask(offsets + (row.position - row.asked.prompt_length), row.asked.positions)
            if acts.any():
                indices.setdefault(row.asked.adapter, []).append(row.start + offsets[acts])
    return {name: torch.cat(parts) for name, parts in indices.items()}


class KeptStates:
    """Last hidden states of drafts and of the base's readings, by request and position."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[int, torch.Tensor]] = {}

    def keep(self, rows: Sequence[Row], hidden: torch.Tensor) -> None:
        """Keeps a step's states ``hidden: (tokens, width)`` where rows ask for it."""
        for row in rows:
            if row.asked.key is None:
                continue
            first = max(row.asked.keep_from, row.position)
            last = row.position + row.count
            if first < last:
                states = hidden[row.start + first - row.position : row.start + row.count].clone()
                self._kept.setdefault(row.asked.key, {}).update(zip(range(first, last), states, strict=True))

    def take(self, key: str, positions: range) -> torch.Tensor:
        """Returns states ``(positions, width)``, and forgets the key."""
        states = self._kept.pop(key, {})
        return torch.stack([states[position] for position in positions])

    def has(self, key: str, positions: range) -> bool:
        return set(positions) <= self._kept.get(key, {}).keys()

    def forget(self, key: str) -> None:
        self._kept.pop(key, None)


class ShardedEdit:
    """One layer's intervention on the rank's part of its site.

    Args:
        intervention: Of the whole width; RED and biases are sliced.
        rank, ranks: Of tensor parallelism.
        is_sliced: Whether the rank holds a slice of the representation.
        gather: Joins the ranks' slices ``(rows, width / ranks)`` to ``(rows, width)``.
    """

    def __init__(
        self, intervention: Any, rank: int, ranks: int, is_sliced: bool, gather: Callable[[Hidden], Hidden]
    ) -> None:
        self.intervention, self.rank, self.ranks, self.gather = intervention, rank, ranks, gather
        self.is_gathered = is_sliced and ranks > 1 and hasattr(intervention, "rotate_layer")
        if is_sliced and ranks > 1 and not self.is_gathered:
            for parameter in intervention.parameters():
                parameter.data = parameter.data.chunk(ranks)[rank].clone()

    @torch.no_grad()
    def __call__(self, hidden: Hidden) -> Hidden:
        """Returns the edited rows, ``(rows, width of the part)``."""
        if not self.is_gathered:
            return self.intervention(hidden)  # type: ignore[no-any-return]
        return self.intervention(self.gather(hidden)).chunk(self.ranks, dim=-1)[self.rank]  # type: ignore[no-any-return]


def part_of(site: str, module: nn.Module, hidden_size: int, width: int, ranks: int) -> slice:
    """Returns which columns of the module's output are the rank's part of the site.

    Args:
        site, module: The site, and vLLM's module of it.
        hidden_size: The base's.
        width: The adapter's, of the whole site.
        ranks: Of tensor parallelism.

    Raises:
        UserError: The site has another width, or the rank does not hold a slice of its own.
    """
    own = width // ranks if site in SLICED else width
    if site == "ffn_up":
        half = sum(module.output_sizes) // (2 * ranks)  # type: ignore[arg-type]
        columns = slice(half, 2 * half)
    elif site in ("attn_q", "attn_k", "attn_v"):
        sizes = [module.num_heads * module.head_size, *[module.num_kv_heads * module.head_size] * 2]  # type: ignore[operator]
        place = ("attn_q", "attn_k", "attn_v").index(site)
        start = int(sum(sizes[:place]))
        columns = slice(start, start + int(sizes[place]))
    else:
        columns = slice(0, hidden_size)
    found = columns.stop - columns.start
    if found != own:
        shared = "; ranks that share keys and values cannot edit them: use fewer" if ranks > 1 else ""
        raise UserError(
            f"an adapter fits models of its own width: this one is for {site} of width {width}, the model's is"
            f" {found * (ranks if site in SLICED else 1)}{shared}"
        )
    return columns


def apply(
    output: Any, site: str, columns: slice, edits: Mapping[str, ShardedEdit], acting: Mapping[str, Hidden]
) -> Any:
    """Edits a module's output in place, for the adapters that act in this step, and returns it."""
    for name, index in acting.items():
        edit = edits.get(name)
        if edit is None:  # this adapter does not act on this module
            continue
        if site == "block":
            hidden, residual = output
            hidden[index] = edit(hidden[index] + residual[index])
            residual[index] = 0  # the next layer adds the two
        else:
            whole = output[0] if isinstance(output, tuple) else output
            whole[index, columns] = edit(whole[index, columns])
    return output
