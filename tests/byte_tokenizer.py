"""A tokenizer that can write everything, for chat templates of every kind."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def make_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A token a byte, and special tokens, of which ``</s>`` is the end of sequence."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    ends = [AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>", "<|start|>", "<|stop|>")]
    tokenizer.add_tokens(ends)
    tokenizer.chat_template = chat_template
    return tokenizer
