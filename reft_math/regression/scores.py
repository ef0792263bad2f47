"""Computes a model's logits and hidden states for prompts, and the probability of every number after them.

In all functions ``input_ids`` are prompts, ``(batch, L)``, padded on the left, and ``attention_mask`` is 0 at padding.
No cache is used, so gradient checkpointing may be on. Interventions that tell prompt from solution see numbers in
columns from L on. With ``bidirectional`` the prompt's tokens attend in both directions, numbers only backwards.

All raise `UserError` for prompts without a last token, tokens without an embedding, and a model without the necessary
masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from reft_math.errors import UserError
from reft_math.regression.grid import Grid, Trie

NO_TOKEN = -100


@dataclass(frozen=True)
class PromptOutputs:
    """A model's outputs for prompts.

    Attributes:
        logits: f, ``(batch, vocabulary)``, at the prompt's last token; the model's dtype.
        attention_mask: ``(batch, L)``.
        hidden: ε, ``(batch, L, width)``, the inputs of the output embedding; None if not requested.
        log_probs: ``log p(str(y)|x)``, ``(batch, numbers)``, float32, or float64 if the logits are; None without grid.
    """

    logits: torch.Tensor
    attention_mask: torch.Tensor
    hidden: torch.Tensor | None = None
    log_probs: torch.Tensor | None = None


def read(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    grid: Grid | None = None,
    bidirectional: bool = False,
    hidden: bool = False,
) -> PromptOutputs:
    """Computes ``log p(str(y)|x) = Σ_t log p(z_t | x, z_1 … z_{t−1})``, ``z = str(y)``, for every y, and the outputs.

    It takes one forward pass, with gradient: the trie's inner nodes follow the prompt, each at its position in its
    string and attending to the prompt and to the nodes it continues. The pass reads ``batch · (L + inner nodes)``
    tokens for prompts of L columns, instead of ``batch · Σ_y (L + |str(y)| − 1)`` for the strings one by one; if every
    number is one token, it reads only the prompt.

    Args:
        model: Causal language model. Strings of several tokens and bidirectional prompts need ``eager`` or ``sdpa``
            attention (a mask of its own for every query), in all layers full or over a sliding window.
        input_ids, attention_mask: See the module.
        grid: Grid of the model's own tokenizer; None scores no numbers.
        bidirectional: See the module.
        hidden: Whether to return hidden states.
    """
    length = input_ids.shape[1]
    is_token, positions = attention_mask.bool(), _positions(attention_mask)
    if grid is not None and grid.trie.num_inner:
        nodes, depths = (
            index[: grid.trie.num_inner].expand(len(input_ids), -1).to(input_ids.device)
            for index in (grid.trie.tokens, grid.trie.depths)
        )
        input_ids = torch.cat([input_ids, nodes], dim=1)
        positions = torch.cat([positions, positions[:, -1:] + 1 + depths], dim=1)
        is_token = torch.cat([is_token, torch.ones_like(nodes, dtype=torch.bool)], dim=1)
    follows = None
    if bidirectional or input_ids.shape[1] > length:
        follows = _follows(length, input_ids.shape[1], bidirectional)
        if grid is not None:
            follows[length:, length:] = grid.trie.follows
    highest = None if grid is None else int(grid.trie.tokens.max())
    outputs = _forward(model, input_ids, is_token, positions, follows, length, highest, output_hidden_states=hidden)
    return PromptOutputs(
        logits=outputs.logits[:, 0],
        attention_mask=attention_mask,
        hidden=outputs.hidden_states[-1][:, :length] if hidden else None,
        log_probs=None if grid is None else _grid_log_probs(outputs.logits, grid.trie),
    )


def grid_log_probs(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    grid: Grid,
    bidirectional: bool = False,
) -> torch.Tensor:
    """Returns `read`'s ``log p(str(y)|x)``, ``(batch, numbers)`` in nats."""
    log_probs = read(model, input_ids, attention_mask, grid, bidirectional).log_probs
    assert log_probs is not None
    return log_probs


def string_log_probs(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    strings: torch.Tensor,
    bidirectional: bool = False,
) -> torch.Tensor:
    """Returns ``log p(z|x)`` of one token string per row, by teacher forcing: for cross-entropy, at one string's cost.

    Args:
        model, input_ids, attention_mask, bidirectional: As for `read`.
        strings: z, ``(batch, longest)`` int64, filled up with `NO_TOKEN` on the right.

    Returns:
        ``(batch,)`` in nats, float32, or float64 if the logits are.
    """
    length, columns = input_ids.shape[1], input_ids.shape[1] + strings.shape[1] - 1
    is_string = strings != NO_TOKEN
    tokens = strings.clamp(min=0)
    is_token = torch.cat([attention_mask.bool(), is_string[:, :-1]], dim=1)
    positions = _positions(is_token)
    follows = _follows(length, columns, bidirectional=True) if bidirectional else None
    inputs = torch.cat([input_ids, tokens[:, :-1]], dim=1)
    logits = _forward(model, inputs, is_token, positions, follows, length, int(tokens.max())).logits
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    steps: torch.Tensor = logits.log_softmax(dim=-1).gather(-1, tokens[..., None])[..., 0]
    return steps.masked_fill(~is_string, 0).sum(dim=1)


def _positions(is_token: torch.Tensor) -> torch.Tensor:
    return (is_token.long().cumsum(dim=1) - 1).clamp(min=0)


def _follows(length: int, columns: int, bidirectional: bool) -> torch.Tensor:
    """Returns ``(columns, columns)``: whether a column may attend to another, ignoring padding."""
    follows = torch.ones(columns, columns, dtype=torch.bool).tril()
    if bidirectional:
        follows[:length, :length] = True
    return follows


def _forward(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    is_token: torch.Tensor,
    positions: torch.Tensor,
    follows: torch.Tensor | None,
    length: int,
    highest: int | None,
    **kwargs: Any,
) -> Any:
    """Returns the model's outputs, with logits from the prompt's last token on; follows None uses the model's mask."""
    num_embeddings = model.get_input_embeddings().num_embeddings
    if highest is not None and highest >= num_embeddings:
        raise UserError(
            f"numbers' tokens need embeddings in the model: it has {num_embeddings}, they go up to token {highest};"
            " resize the model's embeddings to the tokenizer"
        )
    if not is_token[:, length - 1].all():
        raise UserError("numbers follow the prompt's last token: prompts must hold one and be padded on the left")
    return model(
        input_ids=input_ids,
        attention_mask=is_token.long() if follows is None else _masks(model, is_token, positions, follows),
        position_ids=positions,
        use_cache=False,
        logits_to_keep=input_ids.shape[1] - length + 1,
        **kwargs,
    )


def _grid_log_probs(logits: torch.Tensor, trie: Trie) -> torch.Tensor:
    """Scores whole strings from logits at the prompt's end and the inner nodes, ``(batch, 1 + inner, vocabulary)``."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    tokens, parents, paths = (index.to(logits.device) for index in (trie.tokens, trie.parents, trie.paths))
    steps = logits[:, parents, tokens] - logits.logsumexp(dim=-1)[:, parents]
    past_the_end = steps.new_zeros(len(steps), 1)
    return torch.cat([steps, past_the_end], dim=1)[:, paths].sum(dim=-1)


def _masks(
    model: PreTrainedModel, is_token: torch.Tensor, positions: torch.Tensor, follows: torch.Tensor
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Returns additive attention masks, ``(batch, 1, columns, columns)``, by layer type if the model names types."""
    config = model.config.get_text_config()
    layer_types = getattr(config, "layer_types", None)
    if (
        config._attn_implementation not in ("eager", "sdpa")
        or not set(layer_types or ()) <= {"full_attention", "sliding_attention"}
        or not getattr(config, "is_causal", True)
    ):
        raise UserError(
            "numbers of several tokens and bidirectional prompts need causal attention, full or sliding, as eager or"
            f" sdpa; the model's is {config._attn_implementation} with layers {layer_types}: take a grid of single"
            " tokens and causal prompts, or load the model with --attn-implementation sdpa"
        )
    columns = is_token.shape[1]
    itself = torch.eye(columns, dtype=torch.bool, device=is_token.device)  # also for padding: no empty row
    sees = follows.to(is_token.device) & is_token[:, None, :] | itself
    reach = {"full_attention": columns, "sliding_attention": getattr(config, "sliding_window", None) or columns}
    distance = (positions[:, :, None] - positions[:, None, :]).abs()
    masks = {
        kind: _additive(sees & (distance < reach[kind]), model.dtype)
        for kind in set(layer_types or ["sliding_attention"])
    }
    return masks if layer_types else masks.popitem()[1]


def _additive(sees: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros_like(sees, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)[:, None]
