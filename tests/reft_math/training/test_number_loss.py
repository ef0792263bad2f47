"""The loss on numbers against sums over every number, RAFT over a grid, and cross-entropy's gradient."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from reft_math.data.prefix import IGNORE_INDEX
from reft_math.errors import UserError
from reft_math.regression.losses import raft
from reft_math.training.loss import sequence_cross_entropy
from reft_math.training.number_loss import NumberTokens, find_numbers, make_number_loss, number_loss, number_tokens

TokenizerOfKind = Callable[[str], PreTrainedTokenizerBase]
OBJECTIVES = ("ntl", "raft")


def word_level(words: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[0-9]{1,3}|[a-zA-Z]+\.?|."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


# One digit a token, some with a space; two digits a token; and what is no number.
DIGITS = [*"0123456789", *(f" {digit}" for digit in range(10))]
PAIRS = [f"{number:02}" for number in range(100)]
TOKENIZER = word_level([*DIGITS, *PAIRS, "a", "+", "="])
TOKENS = number_tokens(TOKENIZER)


def encode(*tokens: str) -> list[int]:
    return TOKENIZER.convert_tokens_to_ids(list(tokens))


def targets_of(*rows: list[int]) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [IGNORE_INDEX] * (longest - len(row)) for row in rows])


def random_logits(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, len(TOKENIZER), dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def by_every_number(logits: Any, tokens: list[str]) -> float:
    """N of a number of these tokens, ``logits[t]`` at the t-th: a probability for each of ``0 … 10^D − 1``.

    Those that begin as the number does have the model's for the first token that differs, shared out evenly.
    """
    digits = [len(token.strip()) for token in tokens]
    total = sum(digits)
    right = "".join(token.strip() for token in tokens)
    expected = 0.0
    for number in range(10**total):
        text, probability, place = f"{number:0{total}}", 1.0, 0
        for step, (token, width) in enumerate(zip(tokens, digits, strict=True)):
            alike = [f"{' ' * (len(token) - width)}{value:0{width}}" for value in range(10**width)]
            chances = np.exp(logits[step][encode(*alike)])
            probability *= chances[int(text[place : place + width])] / chances.sum()
            if text[place : place + width] != right[place : place + width]:
                probability /= 10 ** (total - place - width)
                break
            place += width
        expected += probability * number
    return float((expected - int(right)) ** 2 / np.var(np.arange(10**total)))


def row_losses(logits: torch.Tensor, targets: torch.Tensor, tokens: NumberTokens, objective: Any) -> torch.Tensor:
    """`number_loss` of ``logits: (batch, target, vocabulary)``, padding included."""
    return number_loss(logits[targets != IGNORE_INDEX], targets, tokens, objective)


@pytest.mark.parametrize(
    ("objective", "rows"),
    [
        ("ntl", [[["4"], ["7"]], [[" 3"]], [["42"], ["07"]]]),
        ("raft", [[["4", "7"]], [[" 3"], ["0", "1", "2"]], [["42"], ["9", "07"], ["05", "0"]]]),
    ],
)
def test_the_loss_is_a_sum_over_every_number(objective: Any, rows: list[list[list[str]]]) -> None:
    """Numbers by row, a "+" after each where they are whole ones; each row's loss is their mean."""
    end = ["+"] if objective == "raft" else []
    targets = targets_of(*(encode("=", *itertools.chain(*(number + end for number in row))) for row in rows))
    logits = random_logits(*targets.shape)
    expected = []
    for row, numbers in enumerate(rows):
        place, losses = 1, []
        for number in numbers:
            losses.append(by_every_number(logits[row, place:].numpy(), number))
            place += len(number + end)
        expected.append(sum(losses) / len(losses))
    found = row_losses(logits, targets, TOKENS, objective)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(row_losses(logits.float(), targets, TOKENS, objective), found.float())


def test_a_number_of_one_token_has_rafts_loss_over_its_grid() -> None:
    logits, values = random_logits(1, 2), torch.arange(100.0)
    log_probs = logits[:, 0].log_softmax(dim=-1)[:, encode(*PAIRS)]
    expected = raft(log_probs, values, torch.tensor([42.0]), normalised=True, reduction="none") / 833.25
    for objective in OBJECTIVES:
        found = row_losses(logits, targets_of(encode("42", "=")), TOKENS, objective)
        torch.testing.assert_close(found, expected)


def test_a_miss_costs_the_square_of_its_share_of_the_range() -> None:
    """By hand: an error of 1, 2 and 6 in 0 … 9, and of 10, 20 and 60 in 0 … 99, whose variances are 8.25 and 833.25."""
    for right, wrong, unit in (("3", "459", 1), ("30", ("40", "50", "90"), 10)):
        costs = [
            row_losses(
                1e3 * torch.eye(len(TOKENIZER))[None, encode(guess)], targets_of(encode(right)), TOKENS, "ntl"
            ).item()
            for guess in wrong
        ]
        assert costs == pytest.approx([(unit * miss) ** 2 / ((100 ** len(right) - 1) / 12) for miss in (1, 2, 6)])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_are_the_derivatives_and_nowhere_else(objective: Any) -> None:
    targets = targets_of(encode("=", "4", "7", "+", "42", "="), encode("a", "+", "="))
    logits = random_logits(*targets.shape).requires_grad_()
    row_losses(logits, targets, TOKENS, objective).sum().backward()
    alike = {(1, token) for token in range(10)} | {(2, token) for token in range(10)}
    alike |= {(4, token) for token in encode(*PAIRS)}
    assert logits.grad is not None
    assert {tuple(place) for place in logits.grad[0].nonzero().tolist()} == alike
    assert not logits.grad[1].any()
    some = random_logits(1, 2)[..., :12].requires_grad_()
    ids = number_tokens(word_level([*"0123456789", "+", "="]))
    row = torch.tensor([[4, 7, 10]])
    assert torch.autograd.gradcheck(lambda x: row_losses(x, row, ids, objective), (torch.cat([some, some[:, :1]], 1),))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_rows_without_numbers_cost_nothing_in_the_wider_type(dtype: torch.dtype, objective: Any) -> None:
    targets = targets_of(encode("a", "+", "="), encode("="))
    logits = random_logits(*targets.shape).to(dtype).requires_grad_()
    losses = row_losses(logits, targets, TOKENS, objective)
    losses.sum().backward()
    assert losses.dtype == torch.promote_types(dtype, torch.float32)
    assert losses.tolist() == [0, 0]
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_certain_models_have_finite_gradients(objective: Any) -> None:
    """Right or wrong by a thousand nats, one of 20 digits among them."""
    row = [*"31415926535897932384", "="]
    for guess in (row, ["9"] * 21):
        logits = (1e3 * torch.eye(len(TOKENIZER))[None, encode(*guess)]).requires_grad_()
        loss = row_losses(logits, targets_of(encode(*row)), TOKENS, objective)
        loss.sum().backward()
        assert logits.grad is not None
        assert loss.isfinite().all()
        assert logits.grad.isfinite().all()
        assert (loss > 0).all() == (guess != row)


# --- numbers among the targets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "numbers"),
    [
        (["4", "7", "+", "3", "8", "=", "8", "5", "a"], ["47", "38", "85"]),
        (["4", "7", "+", "3"], ["47"]),  # 3 may be the beginning of 38
        (["=", "4", " 7", "0", " 5", "a"], ["4", "70", "5"]),  # a space starts a number
        (["12", "5", "07", "a"], ["12507"]),
        (["a", "+"], []),
        (["7"], []),
    ],
)
def test_whole_numbers_are_digits_in_a_row(row: list[str], numbers: list[str]) -> None:
    targets = targets_of(encode("a", "a"), encode(*row))
    rows, columns = find_numbers(targets, TOKENS, "raft")
    found = ["".join(row[column].strip() for column in number if column >= 0) for number in columns.tolist()]
    assert found == numbers
    assert set(rows.tolist()) <= {1}
    rows, columns = find_numbers(targets, TOKENS, "ntl")
    assert [row[column] for column in columns[:, 0].tolist()] == [token for token in row if token.strip().isdigit()]


def test_the_run_says_how_many_numbers_its_loss_sees() -> None:
    rows = [encode("4", "7", "+"), encode("a"), encode("a", "+", "3"), encode("a", "=")]
    text = "numbers in the targets: 3 number tokens, 1 whole numbers; 2 of 4 rows hold none for ntl"
    assert str(make_number_loss(0.3, "ntl", TOKENIZER, rows)) == text
    few = str(make_number_loss(0.3, "raft", TOKENIZER, rows))
    assert "3 of 4 rows hold none for raft; few rows teach numbers: a larger --k or --full-fraction has more" in few


def test_a_loss_that_would_see_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="no token of one to three digits"):
        make_number_loss(0.3, "ntl", word_level(["a", "b"]), [[0]])
    with pytest.raises(
        UserError, match="2 rows' 3 target tokens hold 0 number tokens and 0 whole numbers: give a larger"
    ):
        make_number_loss(0.3, "ntl", TOKENIZER, [encode("a"), encode("a", "=")])
    with pytest.raises(UserError, match="hold 1 number tokens and 0 whole numbers"):
        make_number_loss(0.3, "raft", TOKENIZER, [encode("a", "4")])


# --- the tokens that are numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "some"),
    [
        ("three digits a token", {"7", "12", "100"}),
        ("one digit a token", {"7"}),
        ("space in the token", {"7", "Ġ7", "Ġ100"}),
        ("space put before the text", {"7"}),
        ("one byte a token", {"7"}),
    ],
)
def test_number_tokens_have_the_value_their_text_reads_as(
    tokenizer_of_kind: TokenizerOfKind, kind: str, some: set[str]
) -> None:
    tokenizer = tokenizer_of_kind(kind)
    tokens = number_tokens(tokenizer)
    names = tokenizer.convert_ids_to_tokens(tokens.ids.tolist())
    texts = [name.lstrip("Ġ▁") for name in names]
    assert some <= set(names)
    assert all(text.isdecimal() and len(text) <= 3 for text in texts)
    assert [float(text) for text in texts] == tokens.values.tolist()
    assert [len(text) for text in texts] == tokens.digits.tolist()
    assert [name[0] in "Ġ▁" for name in names] == tokens.spaced.tolist()
    assert tokens.ids.tolist() == sorted(tokens.ids.tolist())
    assert set(range(10)) <= set(tokens.values.tolist())


def test_byte_fallbacks_long_numbers_and_words_are_no_number_tokens() -> None:
    words = ["7", "007", "1234", "<0x37>", "7th", "x7", "²", "-7", "7.", "  7"]
    tokens = number_tokens(word_level(words))
    assert [words[token] for token in tokens.ids.tolist()] == ["7", "007"]
    assert tokens.values.tolist() == [7, 7]


# --- units ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", ["one digit a token", "one byte a token", "one to three digits a token"])
def test_a_weight_of_one_has_cross_entropys_size_whatever_the_tokenizer(
    tokenizer_of_kind: TokenizerOfKind, tiny_model: Callable[..., PreTrainedModel], kind: str, objective: Any
) -> None:
    """``|∇N| / |∇CE|`` lies in 0.1 … 10, over shifts at the sites of RED; unscaled, 1,000 tokens differ by 10,000."""
    words = ["She", "has", "shells", "now.", "+", "=", " "]
    numbers = [f"{number:0{digits}}" for digits in (1, 2, 3) for number in range(10**digits)]
    tokenizer = word_level(numbers + words) if kind.startswith("one to three") else tokenizer_of_kind(kind)
    draw = random.Random(0).randint
    sums = [(draw(10, 400), draw(10, 400)) for _ in range(32)]
    targets = targets_of(
        *(tokenizer.encode(f"She has {a} + {b} = {a + b} shells now.", add_special_tokens=False) for a, b in sums)
    )
    model = tiny_model(vocab_size=len(tokenizer))
    shifts = torch.zeros(3, 48, requires_grad=True)
    for layer, shift in zip(model.model.layers, shifts, strict=True):
        layer.mlp.up_proj.register_forward_hook(lambda module, args, output, shift=shift: output + shift)
    logits = model(torch.cat([torch.ones(len(sums), 1).long(), targets.clamp(min=0)[:, :-1]], dim=1)).logits
    cross_entropy = sequence_cross_entropy(logits[targets != IGNORE_INDEX], targets)
    losses = cross_entropy, row_losses(logits, targets, number_tokens(tokenizer), objective)
    sizes = [torch.autograd.grad(loss.mean(), shifts, retain_graph=True)[0].norm().item() for loss in losses]
    assert 0.1 < sizes[1] / sizes[0] < 10
