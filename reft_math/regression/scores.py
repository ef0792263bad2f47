"""How probable a model finds every number of a grid after a prompt."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from reft_math.errors import UserError
from reft_math.regression.grid import Grid, Trie


def grid_log_probs(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, grid: Grid
) -> torch.Tensor:
    """``log p(str(y)|x) = Σ_t log p(z_t | x, z_1 … z_{t−1})`` with ``z = str(y)``, for every y of the grid.

    One forward pass, with gradient: the trie's inner nodes stand behind the prompt, each at the position it has in its
    string and attending to the prompt and to the nodes it continues. The pass reads ``batch · (L + inner nodes)``
    tokens for prompts of L columns, against ``batch · Σ_y (L + |str(y)| − 1)`` for the strings one by one; where every
    number is one token, it is the prompt's own pass. It holds no cache: gradient checkpointing may be on.

    Interventions that tell prompt from solution see the inner nodes in columns from L on.

    Args:
        model: Causal language model. Strings of several tokens need ``eager`` or ``sdpa`` attention (a mask of its own
            for every query), in all layers full or over a sliding window.
        input_ids: Prompts, ``(batch, L)``, padded on the left.
        attention_mask: ``(batch, L)``, 0 at padding.
        grid: Of the model's own tokenizer.

    Returns:
        ``(batch, numbers)`` in nats, float32, or float64 if the logits are.

    Raises:
        UserError: Prompts without a last token, tokens the model has no embedding for, or a model without such masks.
    """
    trie = grid.trie
    num_embeddings = model.get_input_embeddings().num_embeddings
    if trie.tokens.max() >= num_embeddings:
        raise UserError(
            f"the grid's tokens need embeddings in the model: it has {num_embeddings}, the grid goes up to token"
            f" {int(trie.tokens.max())}; resize the model's embeddings to the tokenizer"
        )
    if not attention_mask[:, -1].all():
        raise UserError("numbers follow the prompt's last token: prompts must hold one and be padded on the left")
    positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    masks: torch.Tensor | dict[str, torch.Tensor] = attention_mask
    if trie.num_inner:
        nodes = trie.tokens[: trie.num_inner].to(input_ids.device)
        depths = trie.depths[: trie.num_inner].to(input_ids.device)
        input_ids = torch.cat([input_ids, nodes.expand(len(input_ids), -1)], dim=1)
        positions = torch.cat([positions, positions[:, -1:] + 1 + depths], dim=1)
        masks = _tree_masks(model, attention_mask, positions, trie)
    logits = model(
        input_ids=input_ids,
        attention_mask=masks,
        position_ids=positions,
        use_cache=False,
        logits_to_keep=trie.num_inner + 1,
    ).logits
    return _string_log_probs(logits, trie)


def _string_log_probs(logits: torch.Tensor, trie: Trie) -> torch.Tensor:
    """From logits at the prompt's end and at the inner nodes, ``(batch, 1 + inner, vocabulary)``, to whole strings."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    tokens, parents, paths = (index.to(logits.device) for index in (trie.tokens, trie.parents, trie.paths))
    steps = logits[:, parents, tokens] - logits.logsumexp(dim=-1)[:, parents]
    past_the_end = steps.new_zeros(len(steps), 1)
    return torch.cat([steps, past_the_end], dim=1)[:, paths].sum(dim=-1)


def _tree_masks(
    model: PreTrainedModel, attention_mask: torch.Tensor, positions: torch.Tensor, trie: Trie
) -> torch.Tensor | dict[str, torch.Tensor]:
    """What is added to attention scores, ``(batch, 1, columns, columns)``; by layer type where the model names them."""
    config = model.config.get_text_config()
    layer_types = getattr(config, "layer_types", None)
    if (
        config._attn_implementation not in ("eager", "sdpa")
        or not set(layer_types or ()) <= {"full_attention", "sliding_attention"}
        or not getattr(config, "is_causal", True)
    ):
        raise UserError(
            "numbers of several tokens need causal attention, full or sliding, as eager or sdpa; the model's is"
            f" {config._attn_implementation} with layers {layer_types}: take a grid of single tokens,"
            " or load the model with attn_implementation='sdpa'"
        )
    length, device = attention_mask.shape[1], attention_mask.device
    columns = length + trie.num_inner
    follows = torch.ones(columns, columns, dtype=torch.bool, device=device).tril()
    follows[length:, length:] = trie.follows.to(device)
    is_token = torch.nn.functional.pad(attention_mask.bool(), (0, trie.num_inner), value=True)
    itself = torch.eye(columns, dtype=torch.bool, device=device)  # also padding's: no row without a column
    sees = follows & is_token[:, None, :] | itself
    reach = {"full_attention": columns, "sliding_attention": getattr(config, "sliding_window", None) or columns}
    distance = positions[:, :, None] - positions[:, None, :]
    masks = {
        kind: _additive(sees & (distance < reach[kind]), model.dtype)
        for kind in set(layer_types or ["sliding_attention"])
    }
    return masks if layer_types else masks.popitem()[1]


def _additive(sees: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros_like(sees, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)[:, None]
