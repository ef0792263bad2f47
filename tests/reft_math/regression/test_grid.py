from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from reft_math.data.arithmetic.tokenizer import build_tokenizer
from reft_math.errors import UserError
from reft_math.regression.grid import Grid, Number, evenly_spaced, make_grid, number_texts, parse_numbers

TokenizerOfKind = Callable[[str], PreTrainedTokenizerBase]
KINDS = (
    "three digits a token",
    "one digit a token",
    "space in the token",
    "space put before the text",
    "one byte a token",
)


def word_level(words: list[str], pattern: str, unk_token: str | None = None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=unk_token))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unk_token)


def tokens_of(tokenizer: PreTrainedTokenizerBase, grid: Grid) -> list[list[str]]:
    return [tokenizer.convert_ids_to_tokens(list(string)) for string in grid.token_ids]


# --- numbers and their texts --------------------------------------------------------------------------------------


def test_a_grid_of_tenths_is_exact_to_the_last_step() -> None:
    """Steps added as floats would drift: 0.1 + 0.1 + 0.1 is 0.30000000000000004."""
    texts = number_texts(evenly_spaced(0.0, 5.0, 0.1))
    assert list(texts.values()) == [f"{whole}.{tenth}" for whole in range(5) for tenth in range(10)] + ["5.0"]
    assert [float(number) for number in texts] == [float(text) for text in texts.values()]


@pytest.mark.parametrize(
    ("numbers", "texts"),
    [
        ([1, 2, 3], ["1", "2", "3"]),
        ([1, 2.5], ["1.0", "2.5"]),
        (["0.05", "1.0"], ["0.05", "1.00"]),
        ([1.0, 9.0], ["1", "9"]),
        ([-0.0, -2], ["0", "-2"]),
        ([1e3, 100], ["1000", "100"]),
        ([1e-7], ["0.0000001"]),
    ],
)
def test_all_numbers_have_as_many_decimals_as_one_needs(numbers: list[Number], texts: list[str]) -> None:
    assert list(number_texts(numbers).values()) == texts


def test_negative_bounds_and_a_single_step_are_grids_too() -> None:
    assert list(number_texts(evenly_spaced(-1, 1, 0.5)).values()) == ["-1.0", "-0.5", "0.0", "0.5", "1.0"]
    assert list(number_texts(evenly_spaced(5, 5, 1)).values()) == ["5"]


@pytest.mark.parametrize("bounds", [(0, 5, 0.3), (5, 0, 1), (0, 5, 0), (0, 5, -1)])
def test_bounds_that_steps_do_not_join_are_refused(bounds: tuple[float, float, float]) -> None:
    with pytest.raises(UserError, match=rf"got {bounds[0]} to {bounds[1]} by {bounds[2]}"):
        evenly_spaced(*bounds)


@pytest.mark.parametrize("number", ["banana", "nan", float("inf"), "", "1e99999999", "1e-99999999", "1e16"])
def test_what_is_no_finite_number_is_refused_by_name(number: Number) -> None:
    with pytest.raises(UserError, match=f"got {number!r}"):
        number_texts([1, number])


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0:5:1", [0, 1, 2, 3, 4, 5]),
        ("-1:1:0.5", ["-1", "-0.5", "0", "0.5", "1"]),
        (" 0 : 0.3 : 0.1 ", ["0", "0.1", "0.2", "0.3"]),
        ("5:5:1", [5]),
        ("1,9", [1, 9]),
        ("9, -1.5,1e2", ["9", "-1.5", "100"]),
        ("1", [1]),
    ],
)
def test_a_grid_is_written_as_bounds_and_steps_or_as_a_list(text: str, numbers: list[Number]) -> None:
    assert parse_numbers(text) == [Decimal(number) for number in numbers]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0:5", "lower:upper:resolution, such as 0:5:0.1, or as a list; got '0:5'"),
        ("0:5:1:2", "got '0:5:1:2'"),
        ("0:5:0.3", "got 0 to 5 by 0.3"),
        ("5:0:1", "got 5 to 0 by 1"),
        ("0:5:", "got ''"),
        ("0:5:1,9", "got '1,9'"),
        ("", "got ''"),
        ("1,,2", "got ''"),
        ("1,banana", "got 'banana'"),
        ("0:inf:1", "got 'inf'"),
    ],
)
def test_a_grid_written_otherwise_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_numbers(text)
    assert "\n" not in str(caught.value)


# --- token strings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("three digits a token", [["Ġ", "0", ".", "5"], ["Ġ", "123", ".", "0"], ["Ġ-", "7", ".", "0"]]),
        ("one digit a token", [["Ġ", "0", ".", "5"], ["Ġ", "1", "2", "3", ".", "0"], ["Ġ-", "7", ".", "0"]]),
        ("space in the token", [["Ġ0", ".", "5"], ["Ġ123", ".", "0"], ["Ġ-", "7", ".", "0"]]),
        (
            "space put before the text",
            [["▁", "0", ".", "5"], ["▁", "1", "2", "3", ".", "0"], ["▁", "-", "7", ".", "0"]],
        ),
        ("one byte a token", [[" ", *"0.5"], [" ", *"123.0"], [" ", *"-7.0"]]),
    ],
)
def test_numbers_become_the_tokens_each_kind_of_tokenizer_writes_them_as(
    tokenizer_of_kind: TokenizerOfKind, kind: str, expected: list[list[str]]
) -> None:
    tokenizer = tokenizer_of_kind(kind)
    grid = make_grid(tokenizer, number_texts([0.5, 123, -7]), "Answer:")
    assert tokens_of(tokenizer, grid) == expected
    assert grid.values.dtype == torch.float64
    assert grid.values.tolist() == [0.5, 123, -7]
    assert grid.texts == ("0.5", "123.0", "-7.0")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("suffix", "space"), [("The answer is equal to", " "), ("Answer:\n", ""), ("<eos>\n", "")])
def test_a_string_continues_the_prompts_tokens_as_in_one_text(
    tokenizer_of_kind: TokenizerOfKind, kind: str, suffix: str, space: str
) -> None:
    tokenizer = tokenizer_of_kind(kind)
    grid = make_grid(tokenizer, number_texts(evenly_spaced(0, 1, 0.25)), suffix)
    before = tokenizer.encode(suffix, add_special_tokens=False)
    for text, string in zip(grid.texts, grid.token_ids, strict=True):
        assert [*before, *string] == tokenizer.encode(suffix + space + text, add_special_tokens=False)


def test_a_space_is_not_doubled_nor_put_where_nothing_stands_before(tokenizer_of_kind: TokenizerOfKind) -> None:
    tokenizer = tokenizer_of_kind("one digit a token")
    for suffix in ("Answer: ", ""):
        assert tokens_of(tokenizer, make_grid(tokenizer, {7: "7"}, suffix)) == [["7"]]


@pytest.mark.parametrize(("leading_space", "expected"), [(True, ["Ġ", "7"]), (False, ["7"])])
@pytest.mark.parametrize("suffix", ["Answer:", "Answer:\n"])
def test_the_space_can_be_set(
    tokenizer_of_kind: TokenizerOfKind, suffix: str, leading_space: bool, expected: list[str]
) -> None:
    tokenizer = tokenizer_of_kind("one digit a token")
    grid = make_grid(tokenizer, {7: "7"}, suffix, leading_space=leading_space)
    assert tokens_of(tokenizer, grid) == [expected]


def test_no_space_where_it_would_change_the_prompts_tokens() -> None:
    tokenizer = word_level(["Answer", ":", ": ", "3"], ": ?|[0-9]|[A-Za-z]+")
    assert tokens_of(tokenizer, make_grid(tokenizer, {3: "3"}, "Answer:")) == [["3"]]


def test_a_text_that_melts_into_the_prompt_is_tokenised_alone(tokenizer_of_kind: TokenizerOfKind) -> None:
    """Decoding starts from "Answer:" and "Ġ", whatever the tokenizer would make of the two texts together."""
    tokenizer = tokenizer_of_kind("space in the token")
    assert tokenizer.tokenize("Answer: 7")[-1] == "Ġ7"
    assert tokens_of(tokenizer, make_grid(tokenizer, {7: "7"}, "Answer: ")) == [["7"]]


@pytest.mark.parametrize(
    "texts",
    [
        {1: "January", 2: "February", 3: "March", 4: "April", 5: "May"},
        {1: "5", 2: "4", 3: "3", 4: "2", 5: "1"},
        {1: "b", 2: "c", 3: "d", 4: "e", 5: "f"},
    ],
)
def test_any_text_can_stand_for_a_number(tokenizer_of_kind: TokenizerOfKind, texts: dict[int, str]) -> None:
    tokenizer = tokenizer_of_kind("one digit a token")
    grid = make_grid(tokenizer, texts, "Answer:")
    assert grid.values.tolist() == [1, 2, 3, 4, 5]
    assert [tokenizer.decode(list(string)).strip() for string in grid.token_ids] == list(texts.values())


def test_the_embedded_tokenizer_writes_numbers_too() -> None:
    tokenizer = build_tokenizer()
    grid = make_grid(tokenizer, number_texts([3, 12]), "have?\n", terminator=tokenizer.eos_token_id)
    assert tokens_of(tokenizer, grid) == [["3", "<eos>"], ["1", "2", "<eos>"]]


def test_one_string_may_begin_another_until_a_terminator_sets_them_apart(tokenizer_of_kind: TokenizerOfKind) -> None:
    tokenizer = tokenizer_of_kind("one digit a token")
    open_ended = make_grid(tokenizer, number_texts([1, 15]), "Answer:").token_ids
    assert open_ended[1][: len(open_ended[0])] == open_ended[0]
    closed = make_grid(tokenizer, number_texts([1, 15]), "Answer:", terminator=tokenizer.eos_token_id).token_ids
    assert closed == tuple((*string, tokenizer.eos_token_id) for string in open_ended)


# --- what cannot be written ---------------------------------------------------------------------------------------


def test_an_unknown_character_is_refused_with_the_number_and_its_tokens(tokenizer_of_kind: TokenizerOfKind) -> None:
    with pytest.raises(UserError, match=r"number 0\.5: its text '½' becomes the tokens \['▁', '<unk>'\]"):
        make_grid(tokenizer_of_kind("space put before the text"), {0.5: "½"}, "Answer:")


def test_a_character_that_the_tokenizer_drops_is_refused() -> None:
    """Without an unknown token nothing but the text that comes back tells -3 from 3."""
    tokenizer = Tokenizer(models.BPE({"3": 0, ":": 1}, []))
    with pytest.raises(UserError, match=r"number -3: its text '-3' becomes the tokens \['3'\], which read '3'"):
        make_grid(PreTrainedTokenizerFast(tokenizer_object=tokenizer), {-3: "-3"}, ":", leading_space=False)


@pytest.mark.parametrize("text", ["", " "])
def test_a_text_of_no_tokens_is_refused(tokenizer_of_kind: TokenizerOfKind, text: str) -> None:
    with pytest.raises(UserError, match=f"number 4: its text '{text}'"):
        make_grid(tokenizer_of_kind("one digit a token"), {4: text}, "Answer:")


def test_two_numbers_of_one_string_are_refused_with_both_and_their_tokens(tokenizer_of_kind: TokenizerOfKind) -> None:
    with pytest.raises(UserError, match=r"; 1 and 3 both become \['Ġ', 'a'\]"):
        make_grid(tokenizer_of_kind("one digit a token"), {1: "a", 2: "b", 3: "a"}, "Answer:")


def test_a_grid_of_no_numbers_is_refused(tokenizer_of_kind: TokenizerOfKind) -> None:
    with pytest.raises(UserError, match="at least one number"):
        make_grid(tokenizer_of_kind("one digit a token"), number_texts([]), "Answer:")


# --- the trie -----------------------------------------------------------------------------------------------------


def grid_of(*token_ids: tuple[int, ...]) -> Grid:
    return Grid(torch.zeros(len(token_ids), dtype=torch.float64), ("",) * len(token_ids), token_ids)


@pytest.mark.parametrize(
    ("strings", "nodes", "inner"),
    [
        (((5,), (6,), (7,)), 3, 0),
        (((5, 6), (5, 7), (5, 8)), 4, 1),
        (((5, 6), (7, 6)), 4, 2),  # the same token after another one is another node
        (((5,), (5, 6), (5, 6, 5)), 3, 2),  # strings that begin others
        (((5, 6, 7), (5, 6, 8), (5, 9)), 5, 2),
    ],
)
def test_a_trie_holds_every_beginning_once_and_spells_every_string(
    strings: tuple[tuple[int, ...], ...], nodes: int, inner: int
) -> None:
    trie = grid_of(*strings).trie
    assert (len(trie.tokens), trie.num_inner) == (nodes, inner)
    spelled = []
    for path in trie.paths.tolist():
        way = [node for node in path if node < nodes]
        spelled.append(tuple(trie.tokens[way].tolist()))
        assert trie.depths[way].tolist() == list(range(len(way)))
        assert trie.parents[way].tolist() == [0, *(node + 1 for node in way[:-1])]
        assert all(node < inner for node in way[:-1])
    assert tuple(spelled) == strings


def test_inner_nodes_follow_themselves_and_their_ancestors_alone() -> None:
    trie = grid_of((5, 6, 7), (5, 8, 7), (9, 7)).trie
    names = [(5,), (5, 6), (5, 8), (9,)]
    ways = [tuple(trie.tokens[: trie.num_inner].tolist()), tuple(trie.depths[: trie.num_inner].tolist())]
    assert ways == [(5, 6, 8, 9), (0, 1, 1, 0)]
    expected = {(name, other) for name in names for other in names if name[: len(other)] == other}
    assert {(names[i], names[j]) for i, j in trie.follows.nonzero().tolist()} == expected
    assert expected == {(name, name) for name in names} | {((5, 6), (5,)), ((5, 8), (5,))}


def test_a_grid_that_no_memory_holds_is_refused() -> None:
    with pytest.raises(UserError, match="at most 100,000 numbers; got 0 to 1e9 by 1e-9"):
        parse_numbers("0:1e9:1e-9")
