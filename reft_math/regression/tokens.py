"""Numbers as tokens of their own: added to the vocabulary, each with a start made from the number's usual tokens.

| start     | embedding of the new token                                               |
| --------- | ------------------------------------------------------------------------ |
| `zero`    | 0                                                                        |
| `first`   | that of the text's first token ("0" for 0.1)                             |
| `average` | the mean of those of the text's tokens ("0", "." and "1" for 0.1)        |

Rows of the output embedding start the same way where it is not the input's. Where the base stays frozen (adapters) they
stay at their start, and are made again from it when the adapter is loaded.

Source: Lukasik et al., Better autoregressive regression with LLMs via regression-aware fine-tuning, tables 17 to 19.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reft_math.regression.grid import Grid, Number, make_grid

Start = Literal["zero", "first", "average"]
AnyNumber = TypeVar("AnyNumber", bound=Number)


def token_name(text: str) -> str:
    """The token that writes a number: one that no prompt holds by chance, as "0.1" would be held by "10.15"."""
    return f"<number {text}>"


def without_names(text: str) -> str:
    """A decoded text with numbers in place of their tokens' names."""
    return re.sub(r"<number ([^>]*)>", r"\1", text)


@torch.no_grad()
def add_number_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Mapping[AnyNumber, str], start: Start
) -> Grid:
    """Adds a token for every number that has none yet, and gives the grid of these single tokens.

    The tokenizer gets the tokens, the model's embeddings are made larger where they have no room, and the new rows get
    their start. Tokens that the tokenizer has already keep their rows: a model saved with them loads as it was.

    Args:
        model: Changed in place.
        tokenizer: The model's; changed in place.
        texts: Number to text.
        start: See the module.

    Raises:
        UserError: A number the tokenizer cannot write with the tokens it has.
    """
    grid = make_grid(tokenizer, texts, prompt_suffix="", leading_space=False)
    names = [token_name(text) for text in grid.texts]
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([name for name in names if name not in known])
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    embeddings = [model.get_input_embeddings().weight]
    output = model.get_output_embeddings()
    if output is not None and output.weight is not embeddings[0]:
        embeddings.append(output.weight)
    ids = list(tokenizer.convert_tokens_to_ids(names))
    for name, token_id, tokens in zip(names, ids, grid.token_ids, strict=True):
        if name not in known:
            pieces = [token for token in tokens if tokenizer.decode([token]).strip()]  # not the space some put first
            for weight in embeddings:
                weight[token_id] = _start(weight[pieces or list(tokens)], start)
    return replace(grid, token_ids=tuple((int(token_id),) for token_id in ids))


def _start(rows: torch.Tensor, start: Start) -> torch.Tensor:
    """The new row from the rows of the text's tokens, ``(tokens, width)``."""
    if start == "zero":
        return torch.zeros_like(rows[0])
    return rows[0] if start == "first" else rows.float().mean(dim=0).to(rows)
