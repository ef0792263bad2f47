from __future__ import annotations

from collections.abc import Sequence

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from reft_math.data.arithmetic.problems import STYLES, Style, arithmetic_problems
from reft_math.data.arithmetic.tokenizer import build_tokenizer
from reft_math.data.templates import (
    TEMPLATES,
    PromptTemplate,
    check_thoughts,
    encode_prompt,
    encode_target,
    get_template,
    without_thoughts,
)
from reft_math.errors import UserError

CHAT, PLAIN = TEMPLATES["chat"], TEMPLATES["plain"]
STEPS = "\nLet's think step by step."
BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."
TURN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<start>' + message.role + '\n' + message.content + END }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start>model\n' }}{% endif %}"
)


# As Qwen3 and DeepSeek-R1 write a prompt: the one asks for a thought by leaving room for it, the other begins it.
QWEN3 = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
R1 = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}{{ '<User>' + message.content }}"
    "{% else %}{{ '<Assistant>' + message.content.split('</think>')[-1] + '<end>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<Assistant><think>\n' }}{% endif %}"
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture
def without_chat(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer.chat_template = None
    return tokenizer


def wrapped(tokenizer: Tokenizer, **options: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", **options)


def merging(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A BPE without word boundaries, trained until each of ``texts`` is a token."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    alphabet = [chr(code) for code in range(32, 127)] + ["\n"]
    special = ["<bos>", "<eos>", "<unk>"]
    bpe.train_from_iterator(
        list(texts) * 50, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    bpe.decoder = decoders.Fuse()
    return wrapped(bpe, unk_token="<unk>")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chat", "<bos>Why?\n"),
        ("chat-step-by-step", f"<bos>Why?{STEPS}\n"),
        ("chat-boxed", f"<bos>Why?{BOXED}\n"),
        ("plain", "Question: Why?\nAnswer:"),
        ("plain-step-by-step", f"Question: Why?{STEPS}\nAnswer:"),
        ("plain-boxed", f"Question: Why?{BOXED}\nAnswer:"),
    ],
)
def test_the_prompt_of_each_template(tokenizer: PreTrainedTokenizerFast, name: str, expected: str) -> None:
    template = get_template(name, tokenizer)
    assert template.prompt("Why?", tokenizer) == expected
    assert str(template) == f"{name}/1"


def test_every_template_is_tested_above() -> None:
    names = ["", "-step-by-step", "-boxed"]
    chats, thinking = [f"chat{name}" for name in names], [f"chat{name}-thinking" for name in names]
    assert list(TEMPLATES) == [*chats, *thinking, *(f"plain{name}" for name in names)]
    assert all(template.name == name for name, template in TEMPLATES.items())


def test_the_version_counts_changes_of_wording() -> None:
    assert str(PromptTemplate("plain", 12, is_chat=False)) == "plain/12"


def test_a_chat_prompt_opens_the_models_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = TURN_TEMPLATE.replace("END", "'<end>'")
    assert CHAT.prompt("Why?", tokenizer) == "<bos><start>user\nWhy?<end><start>model\n"


def test_a_plain_solution_is_set_off_by_a_space(tokenizer: PreTrainedTokenizerFast) -> None:
    assert (PLAIN.target("#### 7", tokenizer), CHAT.target("#### 7", tokenizer)) == (" #### 7", "#### 7")


def test_auto_is_chat_where_the_tokenizer_has_one(tokenizer: PreTrainedTokenizerFast) -> None:
    assert get_template("auto", tokenizer) is CHAT
    tokenizer.chat_template = None
    assert get_template("auto", tokenizer) is PLAIN


def test_an_unknown_name_lists_the_known(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match=r"one of chat, .*, plain-boxed; got 'chatty'"):
        get_template("chatty", tokenizer)


@pytest.mark.parametrize("name", ["chat", "chat-step-by-step", "chat-boxed"])
def test_chat_without_a_chat_template_names_the_way_out(without_chat: PreTrainedTokenizerFast, name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' needs .*--template plain"):
        get_template(name, without_chat)
    assert get_template("plain", without_chat) is PLAIN


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=str)
def test_a_prompt_has_one_bos_and_it_is_first(tokenizer: PreTrainedTokenizerFast, template: PromptTemplate) -> None:
    prompt_ids = encode_prompt(template, "Anna has 3 apples.", tokenizer)
    assert [index for index, token in enumerate(prompt_ids) if token == tokenizer.bos_token_id] == [0]
    text = template.prompt("Anna has 3 apples.", tokenizer).removeprefix("<bos>")
    assert prompt_ids[1:] == tokenizer.encode(text, add_special_tokens=False)


def test_a_prompt_has_no_bos_where_the_tokenizer_puts_none(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = TURN_TEMPLATE.replace("bos_token", "''").replace("END", "'\n'")
    assert tokenizer.bos_token_id not in encode_prompt(CHAT, "Why?", tokenizer)


def test_a_tokenizer_that_closes_every_text_does_not_close_the_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    before = encode_prompt(PLAIN, "Why?", tokenizer), encode_target(PLAIN, "Why?", "#### 7", tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    assert tokenizer.encode("Why?")[-1] == tokenizer.eos_token_id
    assert (encode_prompt(PLAIN, "Why?", tokenizer), encode_target(PLAIN, "Why?", "#### 7", tokenizer)) == before


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("template", [CHAT, PLAIN], ids=str)
def test_the_target_goes_on_where_the_prompt_ends_and_ends_with_the_end_token(
    tokenizer: PreTrainedTokenizerFast, template: PromptTemplate, style: Style
) -> None:
    for row in arithmetic_problems("train", 20, style=style):
        prompt_ids = encode_prompt(template, row.question, tokenizer)
        target_ids = encode_target(template, row.question, row.solution, tokenizer)
        assert target_ids.count(tokenizer.eos_token_id) == 1
        assert target_ids[-1] == tokenizer.eos_token_id
        seam = "" if template.is_chat else " "
        text = template.prompt(row.question, tokenizer).removeprefix("<bos>") + seam + row.solution
        assert prompt_ids + target_ids == [1, *tokenizer.encode(text, add_special_tokens=False), 2]


def test_the_target_has_no_word_boundary_of_the_tokenizers_own_at_the_seam() -> None:
    pieces = ["<bos>", "<eos>", "<unk>", "▁Why?", "\n", "▁\n", "56", "▁56"]
    words = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(pieces)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("\n"), "isolated"), pre_tokenizers.Metaspace(prepend_scheme="first")]
    )
    tokenizer = wrapped(
        words, unk_token="<unk>", chat_template="{% for message in messages %}{{ message.content + '\n' }}{% endfor %}"
    )
    assert tokenizer.encode("56", add_special_tokens=False) == [pieces.index("▁56")], "alone it would differ"
    assert encode_prompt(CHAT, "Why?", tokenizer) == [pieces.index("▁Why?"), pieces.index("\n")]
    assert encode_target(CHAT, "Why?", "56", tokenizer) == [pieces.index("56"), pieces.index("<eos>")]


def test_a_tokenizer_that_merges_across_the_seam_tokenises_the_target_alone() -> None:
    tokenizer = merging(["Answer: 56", "Answer:", " 56"])
    prompt_ids = encode_prompt(PLAIN, "Why?", tokenizer)
    whole = tokenizer.encode("Question: Why?\nAnswer: 56")
    assert tokenizer.convert_ids_to_tokens(whole[-1]) == "Answer: 56", "the seam lies within this token"
    target_ids = encode_target(PLAIN, "Why?", "56", tokenizer)
    assert target_ids == [*tokenizer.encode(" 56", add_special_tokens=False), tokenizer.eos_token_id]
    assert tokenizer.decode(prompt_ids + target_ids) == "Question: Why?\nAnswer: 56<eos>"


@pytest.mark.parametrize("end", ["<turn_end>", "\n<turn_end>", "<turn_end>\n", " <turn_end><eos>"])
def test_the_end_token_of_a_chat_is_what_ends_the_assistants_turn(tokenizer: PreTrainedTokenizerFast, end: str) -> None:
    tokenizer.add_tokens(["<turn_end>"], special_tokens=True)
    tokenizer.chat_template = TURN_TEMPLATE.replace("END", repr(end))
    turn_end, seven = tokenizer.convert_tokens_to_ids(["<turn_end>", "7"])
    assert turn_end not in (tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert CHAT.end_token_id(tokenizer) == turn_end
    written = tokenizer.encode(f"7{end.partition('<')[0]}<turn_end>", add_special_tokens=False)
    assert encode_target(CHAT, "Why?", "#### 7", tokenizer)[-len(written) :] == written
    assert PLAIN.end_token_id(tokenizer) == tokenizer.eos_token_id
    assert encode_target(PLAIN, "Why?", "#### 7", tokenizer)[-2:] == [seven, tokenizer.eos_token_id]


@pytest.mark.parametrize("end", ["", "\n"])
def test_the_end_token_is_eos_where_the_chat_has_no_special_one(tokenizer: PreTrainedTokenizerFast, end: str) -> None:
    tokenizer.chat_template = TURN_TEMPLATE.replace("END", repr(end))
    assert CHAT.end_token_id(tokenizer) == tokenizer.eos_token_id


def test_text_unknown_to_the_tokenizer_is_no_end_token(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = TURN_TEMPLATE.replace("END", "'; '")
    assert CHAT.end_token_id(tokenizer) == tokenizer.eos_token_id


def test_a_tokenizer_without_eos_is_an_error_that_names_the_way_out(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="has no eos_token; set one"):
        PLAIN.end_token_id(tokenizer)


def test_a_template_knows_the_prompts_it_has_framed(tokenizer: PreTrainedTokenizerFast) -> None:
    """Of one question: not with the other frame, without the instruction, or with examples before it."""
    tokenizer.chat_template = QWEN3  # whose thinking mode is another frame
    questions = ("What is 2+3?", "Tom has 4 coins. How many?")
    prompts = {name: [each.prompt(question, tokenizer) for question in questions] for name, each in TEMPLATES.items()}
    for name, template in TEMPLATES.items():
        framed = {other for other in TEMPLATES if template.has_framed(prompts[other][0], tokenizer)}
        assert framed == {name}
        first, second = prompts[name]
        assert not template.has_framed(f"{first} 5\n\n{second}", tokenizer)
    assert not PLAIN.has_framed("Question: \nAnswer", tokenizer)
    assert PLAIN.has_framed("Question: \nAnswer:", tokenizer)


def test_a_frame_of_white_space_may_stand_in_a_question_and_a_special_token_may_not() -> None:
    tokenizer = build_tokenizer()
    chat = TEMPLATES["chat"]
    assert chat.has_framed(chat.prompt("Tom has 4 coins.\nHow many?", tokenizer), tokenizer)
    assert not chat.has_framed("<bos>What is 2+3?\n5<eos>What is 2+4?\n", tokenizer)


@pytest.mark.parametrize(
    ("chat_template", "off", "on"),
    [
        (
            QWEN3,
            "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
            "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (R1, "<bos><User>Why?<Assistant><think>\n\n</think>\n\n", "<bos><User>Why?<Assistant><think>\n"),
    ],
    ids=["Qwen3", "R1"],
)
def test_thinking_is_off_until_it_is_asked_for(
    tokenizer: PreTrainedTokenizerFast, chat_template: str, off: str, on: str
) -> None:
    tokenizer.chat_template = chat_template
    chat, thinking = (get_template(name, tokenizer) for name in ("auto", "chat-thinking"))
    assert chat.prompt("Why?", tokenizer) == off
    assert thinking.prompt("Why?", tokenizer) == on
    assert (str(chat), str(thinking)) == ("chat/1", "chat-thinking/1")
    boxed = get_template("chat-boxed-thinking", tokenizer)
    assert boxed.prompt("Why?", tokenizer) == on.replace("Why?", f"Why?{BOXED}")
    assert chat.has_framed(off, tokenizer)
    assert thinking.has_framed(on, tokenizer)
    assert not chat.has_framed(on, tokenizer)
    assert not thinking.has_framed(off, tokenizer)


def test_a_tokenizer_without_a_thinking_mode_cannot_be_asked_to_think(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match=r"thinking mode, and the tokenizer's has none; use --template chat-boxed$"):
        get_template("chat-boxed-thinking", tokenizer)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<think>\nIs it 7? No, 8.\n</think>\n\nIt is 9.", "\n\nIt is 9."),
        ("Is it 7?</think>It is 9.", "It is 9."),  # the prompt has begun the thought
        ("<think>7</think>or <think>8</think>9", "9"),
        ("<think>\nIs it 7? Or 8", ""),
        ("</think><think>8", ""),
        ("It is 9.", "It is 9."),
        ("x <think> y", "x <think> y"),
    ],
)
def test_the_answer_follows_the_last_thought(completion: str, answer: str) -> None:
    assert without_thoughts(completion) == answer


def test_a_thinking_mode_is_trained_on_thoughts_only() -> None:
    thinking = TEMPLATES["chat-thinking"]
    check_thoughts(thinking, ["<think>7</think>8", "6</think>5"])
    check_thoughts(CHAT, ["8"])
    with pytest.raises(UserError, match="solutions that begin with a thought, up to </think>; these do not all: use"):
        check_thoughts(thinking, ["<think>7</think>8", "5"])


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no\\nway') }}",
        "{% if %}",
        "{{ messages + 1 }}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__ }}",
    ],
)
def test_a_chat_template_that_fails_is_one_line_with_a_way_out(
    tokenizer: PreTrainedTokenizerFast, template: str
) -> None:
    """The last is a way out of the sandbox, were there none in the sandbox."""
    tokenizer.chat_template = template
    for use in (lambda: encode_prompt(CHAT, "Why?", tokenizer), lambda: CHAT.end_token_id(tokenizer)):
        with pytest.raises(UserError, match=r"chat template fails \(\w+: .*use --template plain$"):
            use()
