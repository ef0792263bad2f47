from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from reft_math.data.arithmetic import EMBEDDED_FOLDER
from reft_math.data.arithmetic.problems import STYLES, Style, arithmetic_problems
from reft_math.data.arithmetic.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def texts(style: Style, size: int = 500) -> list[str]:
    return [f"{row.question}\n{row.solution}" for row in arithmetic_problems("train", size, style=style, noise=0.5)]


@pytest.mark.parametrize("style", STYLES)
def test_the_worlds_text_comes_back_and_holds_nothing_unknown(tokenizer: PreTrainedTokenizerFast, style: Style) -> None:
    for text in texts(style):
        token_ids = encode(tokenizer, text)
        assert tokenizer.unk_token_id not in token_ids
        assert tokenizer.decode(token_ids) == text


def test_a_digit_is_a_token(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.convert_ids_to_tokens(encode(tokenizer, "37*2=174")) == list("37*2=174")
    assert {token for token in tokenizer.get_vocab() if any(map(str.isdigit, token))} == set("0123456789")


def test_a_word_is_a_token_with_its_space(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenizer.convert_ids_to_tokens(encode(tokenizer, "Anna has 7 apples.\n#### 7"))
    assert tokens == ["Anna", " has", " ", "7", " apples", ".", "\n", "####", " ", "7"]


def test_four_special_tokens_with_the_padding_first(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert ids == (0, 1, 2, 3)
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


def test_plain_text_starts_with_one_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.encode("Anna has") == [1, *encode(tokenizer, "Anna has")]


def test_the_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    user, assistant = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "#### 7"}

    def text(*messages: dict[str, str]) -> str:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False))

    assert text(user) == "<bos>Why?\n"
    assert text(user, assistant) == "<bos>Why?\n#### 7<eos>"
    assert encode(tokenizer, text(user, assistant)) == [1, *encode(tokenizer, "Why?\n#### 7"), 2]


def test_a_saved_tokenizer_loads_with_equal_ids(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    check_equal(loaded, tokenizer)


def test_the_repositorys_tokenizer_is_the_one_that_is_built(tokenizer: PreTrainedTokenizerFast) -> None:
    check_equal(AutoTokenizer.from_pretrained(EMBEDDED_FOLDER), tokenizer)


def check_equal(loaded: PreTrainedTokenizerFast, built: PreTrainedTokenizerFast) -> None:
    assert loaded.get_vocab() == built.get_vocab()
    assert loaded.chat_template == built.chat_template
    assert (loaded.pad_token, loaded.bos_token, loaded.eos_token) == (built.pad_token, built.bos_token, built.eos_token)
    for style in STYLES:
        for text in texts(style, 20):
            assert loaded.encode(text) == built.encode(text)
            assert loaded.decode(loaded.encode(text), skip_special_tokens=True) == text


@pytest.mark.parametrize("text", ["zebra", "Ω", "漢字", "\t", "🙂", "apples,pears"])
def test_foreign_text_is_unknown_and_no_error(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    token_ids = encode(tokenizer, text)
    assert tokenizer.unk_token_id in token_ids
    assert isinstance(tokenizer.decode(token_ids), str)


def test_empty_text_is_no_token(tokenizer: PreTrainedTokenizerFast) -> None:
    assert encode(tokenizer, "") == []
