"""The embedded world's tokenizer: whole words (with their leading space), one token per digit."""

from __future__ import annotations

from itertools import chain

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from reft_math.data.arithmetic import problems

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
PATTERN = r" ?[A-Za-z]+|\d|\n|#+| |[^\sA-Za-z\d]"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.content }}"
    "{{ '\n' if message.role == 'user' else eos_token }}{% endfor %}"
)


def _corpus() -> list[str]:
    """Returns texts that contain every word of the world in every form."""
    templates = chain(
        [problems.START, problems.QUESTION, *problems.COMPARISONS.values()],
        chain.from_iterable(problems.EVENTS.values()),
    )
    people = problems.WOMEN + problems.MEN
    texts = [
        template.format(name=name, friend=name, owner=name, pronoun=pronoun, items=items, amount=0)
        for template in templates
        for name in people
        for pronoun in ("She", "He")
        for items in problems.ITEMS
    ]
    return [*texts, *problems.OPENERS.values(), "0123456789", "()+-*/=.?\n#### "]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a `PreTrainedTokenizerFast` over the closed vocabulary; other text becomes ``<unk>``."""
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    words = sorted({piece for text in _corpus() for piece, _ in split.pre_tokenize_str(text)})
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
