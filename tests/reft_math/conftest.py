"""Tokenizers of every kind that matters to numbers, trained here on a few hundred generated lines."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

_RNG = random.Random(0)
LINES = [f"The score is {_RNG.uniform(0, 5):.1f} of {_RNG.randint(0, 999)}. Answer: {n}" for n in range(-50, 350)]
WORDS_AND_DIGITS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+"


def _byte_level_bpe(split: str | None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    first = [pre_tokenizers.Split(Regex(split), "isolated")] if split else []
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, last])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1300, initial_alphabet=alphabet, special_tokens=["<eos>"], show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def _sentencepiece_like() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram([]))
    space = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([space, pre_tokenizers.Digits(individual_digits=True)])
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    special_tokens = ["<unk>", "<eos>", "<0x37>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=120, unk_token="<unk>", special_tokens=special_tokens, show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")


_KINDS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "three digits a token": lambda: _byte_level_bpe(WORDS_AND_DIGITS % 3),  # Llama 3
    "one digit a token": lambda: _byte_level_bpe(WORDS_AND_DIGITS % 1),  # Qwen
    "space in the token": lambda: _byte_level_bpe(None),  # GPT-2
    "space put before the text": _sentencepiece_like,  # Llama 2
    "one byte a token": ByT5Tokenizer,
}


@pytest.fixture(scope="session")
def tokenizer_of_kind() -> Callable[[str], PreTrainedTokenizerBase]:
    """``tokenizer_of_kind(kind)``, built once."""
    built: dict[str, PreTrainedTokenizerBase] = {}

    def build(kind: str) -> PreTrainedTokenizerBase:
        if kind not in built:
            built[kind] = _KINDS[kind]()
        return built[kind]

    return build
