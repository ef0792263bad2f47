"""Adds a token for each number to the vocabulary, initialised from the number's usual tokens.

| start     | embedding of the new token                                               |
| --------- | ------------------------------------------------------------------------ |
| `zero`    | 0                                                                        |
| `first`   | that of the text's first token ("0" for 0.1)                             |
| `average` | the mean of those of the text's tokens ("0", "." and "1" for 0.1)        |
| `random`  | drawn from N(0, σ²), σ the model's `initializer_range`                   |

Rows of the output embedding start the same way where it is not the input's. A random start is the same every time: it
is drawn by the number's text. Where the base stays frozen (adapters), what training adds to the rows is a module of its
own, `AddedRows`.

Source: Lukasik et al., Better autoregressive regression with LLMs via regression-aware fine-tuning, tables 17 to 19; it
does not say which distribution its random start is drawn from.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reft_math.regression.grid import Grid, Number, make_grid

Start = Literal["zero", "first", "average", "random"]
AnyNumber = TypeVar("AnyNumber", bound=Number)


def token_name(text: str) -> str:
    """Returns the token for a number, which no prompt contains by chance, as "10.15" contains "0.1"."""
    return f"<number {text}>"


def without_names(text: str) -> str:
    """Replaces tokens' names by numbers in a decoded text."""
    return re.sub(r"<number ([^>]*)>", r"\1", text)


@torch.no_grad()
def add_number_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Mapping[AnyNumber, str], start: Start
) -> Grid:
    """Adds a token for every number without one, and returns the grid of these single tokens.

    The tokenizer gets the tokens, the model's embeddings are made larger where they have no room, and the new rows get
    their start. Tokens that the tokenizer has already keep their rows: a model saved with them loads as it was.

    Args:
        model: Changed in place.
        tokenizer: The model's tokenizer; changed in place.
        texts: Texts by number.
        start: Initial values, see the module.

    Raises:
        UserError: A number the tokenizer cannot write with the tokens it has.
    """
    grid = make_grid(tokenizer, texts, prompt_suffix="", leading_space=False)
    names = [token_name(text) for text in grid.texts]
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([name for name in names if name not in known])
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tables = _tables(model)
    ids = list(tokenizer.convert_tokens_to_ids(names))
    sigma = getattr(model.config.get_text_config(), "initializer_range", 0.02)
    for name, token_id, tokens in zip(names, ids, grid.token_ids, strict=True):
        if name not in known:
            pieces = [token for token in tokens if tokenizer.decode([token]).strip()]  # without a leading space
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            for weight in tables:
                if start == "random":
                    weight[token_id] = sigma * torch.randn(weight.shape[1], generator=generator).to(weight)
                else:
                    weight[token_id] = _start(weight[pieces or list(tokens)], start)
    return replace(grid, token_ids=tuple((int(token_id),) for token_id in ids))


class AddedRows(nn.Module):
    """``ε(v) = E_v + Δ_v`` and ``f_v = (E'_v + Δ'_v)·h`` for a grid's tokens v; Δ' is Δ where E' is E.

    E and E', the model's input and output embedding, stay as they are. Δ, ``(tokens, width)``, starts at 0, float32, or
    float64 where E is: all that is trained, and saved, of two large tables.

    Args:
        model: The model; its embeddings get persistent hooks.
        grid: Grid of single tokens, from `add_number_tokens`.
    """

    ids: torch.Tensor

    def __init__(self, model: PreTrainedModel, grid: Grid) -> None:
        super().__init__()
        tables = _tables(model)
        ids = torch.tensor([token for (token,) in grid.token_ids], device=tables[0].device)
        self.register_buffer("ids", ids, persistent=False)
        self.rows = nn.ParameterList(
            torch.zeros(
                len(ids), table.shape[1], dtype=torch.promote_types(table.dtype, torch.float32), device=table.device
            )
            for table in tables
        )
        model.get_input_embeddings().register_forward_hook(self._embed)
        model.get_output_embeddings().register_forward_hook(self._score)

    def _embed(self, module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        is_number = inputs[0][..., None] == self.ids.to(inputs[0].device)
        added: torch.Tensor = (is_number.to(self.rows[0]) @ self.rows[0]).to(output)
        return output + added * getattr(module, "embed_scale", 1)  # Gemma 3's table scales its output

    def _score(self, module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        added = inputs[0].to(self.rows[-1]) @ self.rows[-1].T
        return output.index_add(-1, self.ids.to(output.device), added.to(output))


def _tables(model: PreTrainedModel) -> list[torch.Tensor]:
    """Returns the input embedding's weights, and the output's if they are not shared."""
    tables = [model.get_input_embeddings().weight]
    output = model.get_output_embeddings()
    if output is not None and output.weight is not tables[0]:
        tables.append(output.weight)
    return tables


def _start(rows: torch.Tensor, start: Start) -> torch.Tensor:
    """Returns the new row from the rows of the text's tokens, ``(tokens, width)``."""
    if start == "zero":
        return torch.zeros_like(rows[0])
    return rows[0] if start == "first" else rows.float().mean(dim=0).to(rows)
