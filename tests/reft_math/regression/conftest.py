"""Tiny regressors over a tokenizer that writes one digit a token, and the space before it as another."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from reft_math.regression.config import RegressorConfig
from reft_math.regression.regressor import Regressor, make_template

VOCABULARY = 1300


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level BPE; not to be changed."""
    bpe = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}|[^\p{L}\p{N}]"), "isolated")
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pieces, bytes_of])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>", "<eos>"],
        show_progress=False,
    )
    bpe.train_from_iterator(["Question: good, not so good, bad\nAnswer:"] * 2, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture
def make_tiny(
    tiny_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> Callable[..., Regressor]:
    """``make_tiny(loss="mbr", …)``: a regressor in evaluation mode by these settings, its Llama in float64.

    ``model`` changes the Llama; adapters are the regressor's own.
    """

    def build(
        model: dict[str, Any] | None = None, adapter: torch.nn.Module | None = None, **settings: Any
    ) -> Regressor:
        config = RegressorConfig(**{"template": "plain", **settings})
        base = tiny_model("Llama", vocab_size=VOCABULARY, **(model or {})).double()
        own = copy.deepcopy(tokenizer)  # may be given tokens
        template = make_template(config, own)
        grid = config.make_grid(base, own, template)
        torch.manual_seed(0)  # heads start random
        return Regressor(base, own, template, grid, config, adapter).eval()

    return build
