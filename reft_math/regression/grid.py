"""Number grids: turn numbers into the token strings with which a tokenizer writes them.

    grid = make_grid(tokenizer, number_texts(evenly_spaced(0, 5, "0.1")), prompt_suffix="Answer:")
    grid = make_grid(tokenizer, {1: "January", 2: "February"}, prompt_suffix="Answer:")

The number of tokens depends on the tokenizer: one per digit, one for three digits, or one per byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, DecimalException
from functools import cached_property
from typing import TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from reft_math.errors import UserError

Number = int | float | str | Decimal
Tokens = tuple[int, ...]
AnyNumber = TypeVar("AnyNumber", bound=Number)

_MOST = 100_000  # greatest size of a grid
_MAGNITUDE = 15  # greatest power of ten of a number: a float resolves it, and its text is short


@dataclass(frozen=True, eq=False)
class Trie:
    """A trie of a grid's token strings: each node is a distinct beginning, shared by its strings.

    Nodes with successors come first: a model has to read only these ``inner`` ones.

    Attributes:
        tokens: Each node's last token, ``(nodes,)`` int64.
        parents: Where that token is predicted, ``(nodes,)`` int64: 0 at the prompt's end, ``j + 1`` at node j.
        depths: Tokens before it in the string, ``(nodes,)`` int64.
        follows: Boolean ``(inner, inner)``: whether node i is node j or continues it.
        paths: The nodes of each string, ``(strings, longest)`` int64, padded with the number of nodes.
    """

    tokens: torch.Tensor
    parents: torch.Tensor
    depths: torch.Tensor
    follows: torch.Tensor
    paths: torch.Tensor

    @property
    def num_inner(self) -> int:
        return len(self.follows)


@dataclass(frozen=True, eq=False)
class Grid:
    """Numbers and their token strings.

    Attributes:
        values: ``y``, ``(numbers,)`` float64.
        texts: Text of each number, without the space before it.
        token_ids: ``str(y)``: the number's tokens after the prompt, with the terminator if there is one.
    """

    values: torch.Tensor
    texts: tuple[str, ...]
    token_ids: tuple[Tokens, ...]

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def is_nested(self) -> bool:
        """Whether one number's string begins another's, as "1" begins "15"."""
        return not _beginnings(string[:-1] for string in self.token_ids).isdisjoint(self.token_ids)

    @cached_property
    def trie(self) -> Trie:
        """The trie of the token strings."""
        beginnings = _beginnings(string[:-1] for string in self.token_ids)
        inner = sorted(beginnings)
        nodes = inner + sorted(_beginnings(self.token_ids) - beginnings)
        index = {node: place for place, node in enumerate(nodes)}
        longest = max(map(len, self.token_ids))
        return Trie(
            tokens=torch.tensor([node[-1] for node in nodes]),
            parents=torch.tensor([index[node[:-1]] + 1 if node[:-1] else 0 for node in nodes]),
            depths=torch.tensor([len(node) - 1 for node in nodes]),
            follows=torch.tensor(
                [[node[: len(other)] == other for other in inner] for node in inner], dtype=torch.bool
            ),
            paths=torch.tensor(
                [
                    [index[string[: depth + 1]] if depth < len(string) else len(nodes) for depth in range(longest)]
                    for string in self.token_ids
                ]
            ),
        )


def evenly_spaced(lower: Number, upper: Number, resolution: Number) -> list[Decimal]:
    """Returns ``lower, lower + resolution, …, upper`` in decimal arithmetic, without rounding errors.

    Raises:
        UserError: The steps do not lead from one bound to the other, or there are too many.
    """
    first, last, step = map(_decimal, (lower, upper, resolution))
    if step > 0 and last - first > _MOST * step:
        raise UserError(f"a grid has at most {_MOST:,} numbers; got {lower} to {upper} by {resolution}")
    if step <= 0 or last < first or (last - first) % step:
        raise UserError(
            "a grid goes from its lower to its upper bound in whole steps of a positive resolution;"
            f" got {lower} to {upper} by {resolution}"
        )
    return [first + step * index for index in range(int((last - first) / step) + 1)]


def number_texts(numbers: Iterable[Number]) -> dict[Decimal, str]:
    """Returns each number with its text, all with as many decimals as any needs: 1 and 2.5 as "1.0" and "2.5".

    Raises:
        UserError: One of them is not a finite number.
    """
    decimals = list(map(_decimal, numbers))
    places = max((max(0, -int(number.normalize().as_tuple().exponent)) for number in decimals), default=0)
    return {number: f"{number:.{places}f}" for number in decimals}


def parse_numbers(text: str) -> list[Decimal]:
    """Parses a grid's numbers: ``lower:upper:resolution`` (``0:5:0.1``), or a list (``1,9``).

    Raises:
        UserError: The text is neither, a number occurs twice, or the steps do not lead from one bound to the other.
    """
    if ":" not in text:
        numbers = list(map(_decimal, text.split(",")))
        if len(set(numbers)) < len(numbers):
            raise UserError(f"a grid names each number once; got {text!r}")
        return numbers
    bounds = text.split(":")
    if len(bounds) != 3:
        raise UserError(f"a grid is written as lower:upper:resolution, such as 0:5:0.1, or as a list; got {text!r}")
    return evenly_spaced(*bounds)


def make_grid(
    tokenizer: PreTrainedTokenizerBase,
    texts: Mapping[AnyNumber, str],
    prompt_suffix: str,
    leading_space: bool | None = None,
    terminator: int | None = None,
) -> Grid:
    """Makes the grid of these numbers as the tokenizer writes them after a prompt.

    If one string begins another (`Grid.is_nested`: "1" and "15", one token per digit), the shorter one's probability
    includes the longer one's, and the grid's can sum to more than 1. A terminator marks the number's end and separates
    the two; `RegressorConfig.make_grid` then adds one.

    Args:
        tokenizer: Any tokenizer.
        texts: Number to text; `number_texts` writes them as decimals.
        prompt_suffix: The text right before the number, the prompt's end or all of it. A text is tokenised together
            with it if that keeps the suffix's tokens (so that no tokenizer adds a word boundary between the two), and
            alone otherwise.
        leading_space: Whether a space precedes the number. By default it does unless the suffix is empty, ends in
            white space, or is tokenised differently before a space. If the space is a separate token (as before digits
            for Llama 3, Qwen and Gemma), every string starts with it: single digits as single tokens then need a prompt
            that ends in white space, or False.
        terminator: Token appended to every string, such as the end of a sequence.

    Raises:
        UserError: There are no numbers, or the tokenizer cannot write one, or writes two alike.
    """
    if not texts:
        raise UserError("a grid needs at least one number; got none")
    strings = _encode_after(tokenizer, prompt_suffix, list(texts.values()), leading_space)
    end = () if terminator is None else (terminator,)
    numbers: dict[Tokens, Number] = {}
    for (number, text), string in zip(texts.items(), strings, strict=True):
        tokens = tokenizer.convert_ids_to_tokens(list(string))
        read = tokenizer.decode(list(string), clean_up_tokenization_spaces=False)
        if not text.strip() or _letters(read) != _letters(text):
            raise UserError(
                f"the tokenizer cannot write the number {number}: its text {text!r} becomes the tokens {tokens},"
                f" which read {read!r}; give the number a text that the tokenizer knows"
            )
        if string in numbers:
            raise UserError(
                f"numbers need token strings of their own; {numbers[string]} and {number} both become {tokens}"
            )
        numbers[string] = number
    return Grid(
        values=torch.tensor([float(_decimal(number)) for number in texts], dtype=torch.float64),
        texts=tuple(texts.values()),
        token_ids=tuple(string + end for string in strings),
    )


def _encode_after(
    tokenizer: PreTrainedTokenizerBase, suffix: str, texts: Sequence[str], leading_space: bool | None
) -> list[Tokens]:
    """Returns each text's tokens after the suffix."""

    def encode(text: str) -> Tokens:
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    if leading_space is None:
        spaces = [" ", ""] if suffix and not suffix[-1].isspace() else [""]
    else:
        spaces = [" " if leading_space else ""]
    before = encode(suffix)
    for space in spaces:
        wholes = [encode(suffix + space + text) for text in texts]
        if all(whole[: len(before)] == before for whole in wholes):
            return [whole[len(before) :] for whole in wholes]
    return [encode(spaces[-1] + text) for text in texts]


def _letters(text: str) -> str:
    """Returns the part of a text that a tokenizer must preserve: not white space or case."""
    return "".join(text.split()).casefold()


def _beginnings(strings: Iterable[Tokens]) -> set[Tokens]:
    return {string[:length] for string in strings for length in range(1, len(string) + 1)}


def _decimal(number: Number) -> Decimal:
    try:
        value = Decimal(str(number)) + 0  # minus zero is zero
    except DecimalException:  # not a number, or out of range
        value = Decimal("NaN")
    if not value.is_finite() or abs(value.adjusted()) > _MAGNITUDE:
        raise UserError(f"a grid is made of numbers such as 3 or 0.25; got {number!r}")
    return value
