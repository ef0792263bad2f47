from __future__ import annotations

import copy
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
import torch
from scipy.stats import kstest, norm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from reft_math.errors import UserError
from reft_math.regression.grid import evenly_spaced, number_texts
from reft_math.regression.scores import grid_log_probs
from reft_math.regression.tokens import AddedRows, Start, add_number_tokens, token_name, without_names

TinyModel = Callable[..., PreTrainedModel]
TokenizerOfKind = Callable[[str], PreTrainedTokenizerBase]

KINDS = (
    "three digits a token",
    "one digit a token",
    "space in the token",
    "space put before the text",
    "one byte a token",
)
TEXTS = number_texts([0, 0.5, 10.5])
ROOM = 1300  # more embeddings than any of the tokenizers has tokens


@pytest.fixture
def tokenizer_to_change(tokenizer_of_kind: TokenizerOfKind) -> TokenizerOfKind:
    """As `tokenizer_of_kind`, a copy a call."""
    return lambda kind: copy.deepcopy(tokenizer_of_kind(kind))


@pytest.fixture
def tokenizer(tokenizer_to_change: TokenizerOfKind) -> PreTrainedTokenizerBase:
    return tokenizer_to_change("three digits a token")


def prompt_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    input_ids = torch.tensor([tokenizer.encode("The score is 2.5 of 12. Answer:", add_special_tokens=False)])
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


# --- where the rows start ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["zero", "first", "average"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("has_room", [False, True])
@torch.no_grad()
def test_new_rows_are_made_of_the_texts_own_in_both_embeddings(
    tiny_model: TinyModel, tokenizer: PreTrainedTokenizerBase, start: Start, tied: bool, has_room: bool
) -> None:
    size = ROOM if has_room else len(tokenizer)
    model = tiny_model("Llama", vocab_size=size, tie_word_embeddings=tied)
    pieces = [
        tokenizer.convert_tokens_to_ids(["0" if text[0] == "0" else "10", ".", text[-1]]) for text in TEXTS.values()
    ]
    old = [model.get_input_embeddings().weight.clone(), model.get_output_embeddings().weight.clone()]
    assert torch.equal(*old) == tied
    grid = add_number_tokens(model, tokenizer, TEXTS, start)
    new = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    assert (new[0] is new[1]) == tied
    for before, after in zip(old, new, strict=True):
        for (token,), piece in zip(grid.token_ids, pieces, strict=True):
            rows = before[piece].double()
            expected = {"zero": 0 * rows[0], "first": rows[0], "average": (rows[0] + rows[1] + rows[2]) / 3}[start]
            torch.testing.assert_close(after[token].double(), expected, rtol=0, atol=1e-7)


@torch.no_grad()
def test_a_random_start_is_normal_and_the_same_every_time(
    tiny_model: TinyModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Whatever the random state: the base of a saved regressor is made again from its settings."""
    texts = number_texts(evenly_spaced(0, 99, 1))
    found = []
    for seed in (0, 1):
        model, own = tiny_model("Llama", vocab_size=ROOM, initializer_range=0.3), copy.deepcopy(tokenizer)
        torch.manual_seed(seed)
        ids = [token for (token,) in add_number_tokens(model, own, texts, "random").token_ids]
        found.append(torch.stack([model.get_input_embeddings().weight[ids], model.get_output_embeddings().weight[ids]]))
    assert torch.equal(*found)
    rows = found[0].flatten(0, 1)
    assert len(rows.unique(dim=0)) == 200
    assert kstest(rows.flatten().numpy(), norm(scale=0.3).cdf).pvalue > 0.01


@pytest.mark.parametrize(("family", "tied"), [("Llama", False), ("Llama", True), ("Gemma3", True)])
def test_what_is_added_to_rows_is_as_if_the_tables_held_it(
    tiny_model: TinyModel, tokenizer: PreTrainedTokenizerBase, family: str, tied: bool
) -> None:
    """Logits, and the gradients of the rows; numbers stand in the prompt, too. Gemma 3 scales what its table gives."""
    models = [tiny_model(family, vocab_size=ROOM, tie_word_embeddings=tied).double() for _ in range(2)]
    texts = {1: "1", 2: "2", 3: "3"}
    grids = [add_number_tokens(model, copy.deepcopy(tokenizer), texts, "first") for model in models]
    model, plain = models
    added, ids = AddedRows(model, grids[0]), [token for (token,) in grids[1].token_ids]
    tables = [plain.get_input_embeddings().weight, plain.get_output_embeddings().weight][: 2 - tied]
    prompt = torch.tensor([[5, ids[1], 6, ids[2]], [ids[1], 7, 8, 9]])
    before = plain(input_ids=prompt).logits
    assert torch.equal(model(input_ids=prompt).logits, before)
    assert [row.shape for row in added.rows] == [(3, 32)] * len(tables)
    with torch.no_grad():
        for row, table in zip(added.rows, tables, strict=True):
            row.copy_(torch.randn(row.shape, generator=torch.Generator().manual_seed(1)) / 10)
            table[ids] += row
    logits, expected = model(input_ids=prompt).logits, plain(input_ids=prompt).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert (expected - before).abs().max() > 1e-2
    weight = torch.linspace(-1, 1, logits.numel(), dtype=torch.float64).view_as(logits)
    found = torch.autograd.grad((weight * logits).sum(), list(added.rows))
    for ours, theirs in zip(found, torch.autograd.grad((weight * expected).sum(), tables), strict=True):
        torch.testing.assert_close(ours, theirs[ids], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", ["first", "average"])
@torch.no_grad()
def test_a_space_that_the_tokenizer_puts_first_is_no_part_of_the_number(
    tiny_model: TinyModel, tokenizer_to_change: TokenizerOfKind, start: Start
) -> None:
    """Else all numbers would start alike."""
    tokenizer = tokenizer_to_change("space put before the text")
    assert tokenizer.tokenize("7") == ["▁", "7"]
    model = tiny_model("Llama", vocab_size=len(tokenizer))
    grid = add_number_tokens(model, tokenizer, {4: "4", 7: "7"}, start)
    weight = model.get_input_embeddings().weight
    for text, (token,) in zip(grid.texts, grid.token_ids, strict=True):
        assert torch.equal(weight[token], weight[tokenizer.convert_tokens_to_ids(text)])


@torch.no_grad()
def test_an_average_in_half_precision_is_rounded_once(
    tiny_model: TinyModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = tiny_model("Llama", vocab_size=ROOM).bfloat16()
    pieces = tokenizer.convert_tokens_to_ids(["0", ".", "5"])
    ((token,),) = add_number_tokens(model, tokenizer, {0.5: "0.5"}, "average").token_ids
    weight = model.get_input_embeddings().weight
    assert torch.equal(weight[token], weight[pieces].float().mean(dim=0).bfloat16())


# --- what stays as it was ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_logits_of_old_tokens_are_what_they_were(
    tiny_model: TinyModel, tokenizer: PreTrainedTokenizerBase, tied: bool
) -> None:
    size = len(tokenizer)
    model = tiny_model("Llama", vocab_size=size, tie_word_embeddings=tied).double()
    before = model(**prompt_of(tokenizer)).logits
    add_number_tokens(model, tokenizer, TEXTS, "average")
    after = model(**prompt_of(tokenizer)).logits
    assert after.shape[-1] == model.config.vocab_size == len(tokenizer) == size + len(TEXTS)
    torch.testing.assert_close(after[..., :size], before, rtol=0, atol=1e-12)


@torch.no_grad()
def test_embeddings_with_room_are_not_made_larger(tiny_model: TinyModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Checkpoints pad their vocabulary to a round number: resizing would take rows away."""
    model = tiny_model("Llama", vocab_size=ROOM)
    module = model.get_input_embeddings()
    before = module.weight.clone()
    grid = add_number_tokens(model, tokenizer, TEXTS, "first")
    assert model.get_input_embeddings() is module
    changed = (module.weight != before).any(dim=1).nonzero()[:, 0].tolist()
    assert changed == [token for (token,) in grid.token_ids]


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_that_hold_numbers_are_tokenised_as_before(
    tiny_model: TinyModel, tokenizer_to_change: TokenizerOfKind, kind: str
) -> None:
    tokenizer = tokenizer_to_change(kind)
    prompts = ("0.1", "10.15 of 0.1. Answer:", "Answer: 0.1\n", "number 0.1", "<number", "<number 0.1")
    before = [tokenizer.encode(prompt) for prompt in prompts]
    add_number_tokens(tiny_model("Llama", vocab_size=ROOM), tokenizer, number_texts(evenly_spaced(0, 1, "0.1")), "zero")
    assert [tokenizer.encode(prompt) for prompt in prompts] == before


@torch.no_grad()
def test_tokens_that_are_there_keep_their_rows(tiny_model: TinyModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """A model saved with trained ones is read by the same call that added them."""
    model = tiny_model("Llama", vocab_size=len(tokenizer))
    first = add_number_tokens(model, tokenizer, TEXTS, "average")
    for parameter in model.parameters():
        parameter.add_(0.5)
    trained, size = copy.deepcopy(model.state_dict()), len(tokenizer)
    again = add_number_tokens(model, tokenizer, TEXTS, "zero")
    assert again.token_ids == first.token_ids
    assert len(tokenizer) == size
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, trained[name])
    more = add_number_tokens(model, tokenizer, {Decimal("7.5"): "7.5", **TEXTS}, "zero")
    assert more.token_ids == ((size,), *first.token_ids)
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        assert torch.equal(model.state_dict()[name], torch.cat([trained[name], torch.zeros(1, 32)]))


def test_a_number_the_tokenizer_cannot_write_changes_nothing(
    tiny_model: TinyModel, tokenizer_to_change: TokenizerOfKind
) -> None:
    tokenizer = tokenizer_to_change("space put before the text")
    size, model = len(tokenizer), tiny_model("Llama")
    with pytest.raises(UserError, match=r"number 0\.5: its text '½'"):
        add_number_tokens(model, tokenizer, {1: "1", 0.5: "½"}, "average")
    assert len(tokenizer) == size
    assert model.get_input_embeddings().num_embeddings == 64


# --- the grid they make -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_is_scored_by_a_token_of_its_own(
    tiny_model: TinyModel, tokenizer_to_change: TokenizerOfKind, kind: str
) -> None:
    tokenizer = tokenizer_to_change(kind)
    model = tiny_model("Llama", vocab_size=len(tokenizer)).double()
    grid = add_number_tokens(model, tokenizer, TEXTS, "average")
    assert (grid.values.tolist(), grid.texts) == ([0, 0.5, 10.5], ("0.0", "0.5", "10.5"))
    ids = [token for (token,) in grid.token_ids]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<number 0.0>", "<number 0.5>", "<number 10.5>"]
    scores = grid_log_probs(model, **prompt_of(tokenizer), grid=grid)
    expected = model(**prompt_of(tokenizer)).logits[:, -1].log_softmax(dim=-1)[:, ids]
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-9)
    scores.sum().backward()
    assert model.lm_head.weight.grad[ids].abs().sum(dim=1).min() > 0  # a start of any kind can be left


@pytest.mark.parametrize("kind", KINDS)
def test_decoded_texts_read_as_the_numbers_themselves(
    tiny_model: TinyModel, tokenizer_to_change: TokenizerOfKind, kind: str
) -> None:
    tokenizer = tokenizer_to_change(kind)
    texts = {-0.5: "-0.5", 10.5: "10.5", 5: "score"}
    grid = add_number_tokens(tiny_model("Llama", vocab_size=ROOM), tokenizer, texts, "zero")
    before = tokenizer.encode("Answer:", add_special_tokens=False)
    for text, string in zip(grid.texts, grid.token_ids, strict=True):
        assert without_names(token_name(text)) == text
        assert without_names(tokenizer.decode([*before, *string], skip_special_tokens=True)) == f"Answer:{text}"
    assert without_names("a < b, number 3> 2, <number") == "a < b, number 3> 2, <number"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_saved_tokens_come_back_with_their_ids_and_rows(
    tiny_model: TinyModel, tokenizer_to_change: TokenizerOfKind, tmp_path: Path, kind: str, tied: bool
) -> None:
    tokenizer = tokenizer_to_change(kind)
    model = tiny_model("Llama", vocab_size=len(tokenizer), tie_word_embeddings=tied)
    grid = add_number_tokens(model, tokenizer, TEXTS, "average")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, loaded_tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    again = add_number_tokens(loaded, loaded_tokenizer, TEXTS, "zero")
    assert again.token_ids == grid.token_ids
    assert loaded_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
