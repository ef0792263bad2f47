"""Chat templates of the kinds that models come with: what is asked, what is trained on, where a turn ends.

They are written after Llama 2 and 3, Mistral, Gemma, Qwen3, SmolLM3, Phi-3, Vicuna and templates that read parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from types import SimpleNamespace

import pytest
from byte_tokenizer import make_tokenizer
from tokenizers import AddedToken
from transformers.utils import chat_template_utils

from reft_math.data.templates import TEMPLATES, encode_prompt, encode_start, encode_target, get_template
from reft_math.errors import UserError

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PARTS = CHATML.replace(
    "message.content", "(message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join)"
)
REFUSING = "{% for m in messages %}{% if not m.content %}{{ raise_exception('empty') }}{% endif %}{% endfor %}" + CHATML
LLAMA_3 = (
    "{{ '<s>' }}{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}"
    "{% endif %}<|start|>system<|stop|>\n\nToday Date: {{ date_string }}\n\n<|im_end|>"
    "{% for message in messages %}{{ '<|start|>' + message.role + '<|stop|>\n\n' + message.content | trim }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|stop|>\n\n' }}{% endif %}"
)
LLAMA_3_1 = LLAMA_3.replace("strftime_now is defined", "false")
LLAMA_2 = (
    "{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{% if message.role == 'user' %}"
    "{{ '<s>' + '[INST] ' + message.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message.content.strip() + ' </s>' }}{% endif %}{% endfor %}"
)
MISTRAL = LLAMA_2.replace("' ' + message.content.strip() + ' </s>'", "message.content + '</s>'")
GEMMA = (
    "{{ '<s>' }}{% for message in messages %}{% set role = 'model' if message.role == 'assistant' else message.role %}"
    "{{ '<|start|>' + role + '\n' + message.content | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>model\n' }}{% endif %}"
)
QWEN_3 = (
    "{% for message in messages %}{% if message.role == 'user' %}"
    "{{ '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}{% else %}"
    "{% set thought = message.content.split('</think>')[0].split('<think>')[-1] if '</think>' in message.content %}"
    "{{ '<|im_start|>assistant\n<think>\n' + (thought or '').strip() + '\n</think>\n\n' }}"
    "{{ message.content.split('</think>')[-1].lstrip() + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
SMOLLM_3 = (
    "{% macro day() %}{{ strftime_now('%d %B %Y') }}{% endmacro %}<|im_start|>system\nToday Date: {{ day() }}\n"
    "{{ '/think' if enable_thinking else '/no_think' }}<|im_end|>\n"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and not enable_thinking %}{{ '<think>\n\n</think>\n' }}{% endif %}"
    "{{ message.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if not enable_thinking %}{{ '<think>\n\n</think>\n' }}{% endif %}{% endif %}"
)
PHI_3 = (
    "{% for message in messages %}{{ '<|start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{{ '<|start|>assistant\n' if add_generation_prompt else '</s>' }}"
)
VICUNA = (
    "A chat. {% for message in messages %}{{ 'USER: ' + message.content + ' ASSISTANT:' if message.role == 'user' else"
    " ' ' + message.content + '</s>' }}{% endfor %}"
)
HARMONY = (
    "{% for message in messages %}{% if message.role == 'assistant' %}"
    "{{ '<|start|>assistant<|stop|>final\n' + message.content + '<|im_end|>' }}{% else %}"
    "{{ '<|start|>user\n' + message.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)


@dataclass(frozen=True)
class Case:
    """A chat template and what it makes of the question ``Why?`` and the solution ``So. 7``."""

    template: str
    prompt: str
    turn: str
    identity: str = "chat/1"


CASES = {
    "ChatML": Case(CHATML, "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n", "So. 7<|im_end|>"),
    "parts": Case(PARTS, "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n", "So. 7<|im_end|>"),
    "refusing": Case(REFUSING, "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n", "So. 7<|im_end|>"),
    "Llama 3.2": Case(
        LLAMA_3,
        "<s><|start|>system<|stop|>\n\nToday Date: 26 Jul 2024\n\n<|im_end|><|start|>user<|stop|>\n\nWhy?<|im_end|>"
        "<|start|>assistant<|stop|>\n\n",
        "So. 7<|im_end|>",
        "chat/1@2024-07-26",
    ),
    "Llama 3.1": Case(
        LLAMA_3_1,
        "<s><|start|>system<|stop|>\n\nToday Date: 26 Jul 2024\n\n<|im_end|><|start|>user<|stop|>\n\nWhy?<|im_end|>"
        "<|start|>assistant<|stop|>\n\n",
        "So. 7<|im_end|>",
    ),
    "Llama 2": Case(LLAMA_2, "<s>[INST] Why? [/INST]", " So. 7 </s>"),
    "Mistral": Case(MISTRAL, "<s>[INST] Why? [/INST]", "So. 7</s>"),
    "Gemma": Case(GEMMA, "<s><|start|>user\nWhy?<|im_end|>\n<|start|>model\n", "So. 7<|im_end|>"),
    "Qwen3": Case(
        QWEN_3,
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "So. 7<|im_end|>",
    ),
    "SmolLM3": Case(
        SMOLLM_3,
        "<|im_start|>system\nToday Date: 26 July 2024\n/no_think<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n",
        "So. 7<|im_end|>",
        "chat/1@2024-07-26",
    ),
    "Phi-3": Case(PHI_3, "<|start|>user\nWhy?<|im_end|>\n<|start|>assistant\n", "So. 7<|im_end|>"),
    "Vicuna": Case(VICUNA, "A chat. USER: Why? ASSISTANT:", " So. 7</s>"),
    "Harmony": Case(HARMONY, "<|start|>user\nWhy?<|im_end|><|start|>assistant", "<|stop|>final\nSo. 7<|im_end|>"),
}


@pytest.mark.parametrize("name", CASES)
def test_prompt_and_target_are_what_the_chat_template_writes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    tokenizer = make_tokenizer(case.template)
    template = get_template("auto", tokenizer)
    assert str(template) == case.identity
    assert template.prompt("Why?", tokenizer) == case.prompt
    target = encode_target(template, "Why?", "So. 7", tokenizer)
    assert tokenizer.decode(encode_prompt(template, "Why?", tokenizer)) == case.prompt
    assert tokenizer.decode(target) == case.turn
    assert target[-1] == template.end_token_id(tokenizer) == tokenizer.encode(case.turn)[-1]
    start = encode_start(template, "Why?", "So", tokenizer)
    assert start == target[: len(start)]
    assert template.has_framed(case.prompt, tokenizer)

    # The oracle: stock apply_chat_template of the whole conversation, on that day.
    monkeypatch.setattr(chat_template_utils, "datetime", SimpleNamespace(now=lambda: datetime(2024, 7, 26)))
    contents = [[{"type": "text", "text": text}] if name == "parts" else text for text in ("Why?", "So. 7")]
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), contents, strict=True)]
    whole = tokenizer.apply_chat_template(messages, tokenize=False, enable_thinking=False)
    assert whole.startswith(case.prompt + case.turn)
    ids = tokenizer.encode(whole, add_special_tokens=False)
    assert ids[: len(encode_prompt(template, "Why?", tokenizer)) + len(target)] == (
        encode_prompt(template, "Why?", tokenizer) + target
    )
    assert tokenizer.apply_chat_template(
        messages[:1], tokenize=False, add_generation_prompt=True, enable_thinking=False
    ) == (case.prompt)


@pytest.mark.parametrize("today", [datetime(2026, 11, 29), datetime(2024, 7, 26)])
def test_prompts_are_the_same_whatever_the_day(today: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template_utils, "datetime", SimpleNamespace(now=lambda: today))
    for name in ("Llama 3.2", "Llama 3.1", "SmolLM3"):
        tokenizer = make_tokenizer(CASES[name].template)
        template = get_template("auto", tokenizer)
        assert (str(template), template.prompt("Why?", tokenizer)) == (CASES[name].identity, CASES[name].prompt)


def test_a_date_that_only_a_caller_gives_is_given() -> None:
    """Without a fallback of its own, stock transformers leaves it out."""
    tokenizer = make_tokenizer("{{ 'Today: ' + (date_string or '') + '\n' }}" + CHATML)
    template = get_template("auto", tokenizer)
    assert template.prompt("Why?", tokenizer) == "Today: 26 Jul 2024\n" + CASES["ChatML"].prompt
    assert str(template) == "chat/1@2024-07-26"


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("%Y-%m-%d", "2024-07-26"),
        ("%B %-d, %Y", "July 26, 2024"),
        ("%A %j %H:%M %p %y", "Friday 208 00:00 AM 24"),
        ("%F %e", "2024-07-26 26"),
    ],
)
def test_every_way_to_write_the_date_is_known(form: str, text: str) -> None:
    assert f"{datetime(2024, 7, 26).strftime(form)}" == text
    tokenizer = make_tokenizer(f"{{{{ strftime_now('{form}') }}}}{CHATML}")
    assert TEMPLATES["chat"].prompt("Why?", tokenizer) == text + CASES["ChatML"].prompt


@pytest.mark.parametrize(
    ("recorded", "same"),
    [("chat/1", True), ("chat/1@2024-07-26", True), ("chat/1@2024-07-27", False), ("chat/2", False), ("chat", False)],
)
def test_a_recorded_template_is_known_by_name_version_and_date(recorded: str, same: bool) -> None:
    assert TEMPLATES["chat"].is_recorded_as(recorded) is same


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("message.content", "''"),
        CHATML.replace("message.content", "message.content | upper"),
        CHATML.replace("message.content", "message.content[:3]"),
        "Solve: {% for part in messages[0].content %}{{ part.image }}{% endfor %}",
    ],
    ids=["nothing", "in capitals", "its start", "pictures"],
)
def test_a_prompt_without_its_question_is_refused(template: str) -> None:
    with pytest.raises(UserError, match=r"template leaves out what it is given, as text and as parts; use --template"):
        get_template("auto", make_tokenizer(template)).prompt("Why is it so?", make_tokenizer(template))


def test_a_template_that_leaves_out_the_assistants_turn_cannot_be_trained_on() -> None:
    tokenizer = make_tokenizer(CHATML.replace("message.content", "(message.content if message.role == 'user' else '')"))
    with pytest.raises(UserError, match="leaves out what it is given"):
        encode_target(TEMPLATES["chat"], "Why?", "So. 7", tokenizer)


@pytest.mark.parametrize(
    ("template", "token", "text"),
    [
        (CHATML, "<|im_end|>", None),
        (CHATML.replace("<|im_end|>", "<|end|>"), "<|im_start|>", "<|end|>"),  # no token of the tokenizer's
        (CHATML.replace("<|im_end|>", ""), "<|im_start|>", None),  # as GLM's: the next turn's token ends this one
        (VICUNA.replace("</s>", ""), None, "USER:"),
        ("{% for m in messages %}{{ m.content + '\n' }}{% endfor %}", None, None),
        ("{% if messages[2] %}{{ 1 / 0 }}{% endif %}" + VICUNA.replace("</s>", ""), None, None),
    ],
)
def test_the_next_turn_ends_a_completion(template: str, token: str | None, text: str | None) -> None:
    tokenizer = make_tokenizer(template)
    tokens = set() if token is None else {tokenizer.convert_tokens_to_ids(token)}
    assert get_template("chat", tokenizer).stops(tokenizer) == (tokens, () if text is None else (text,))
    assert TEMPLATES["plain-boxed"].stops(tokenizer) == (set(), ("Question:",))


def test_an_empty_turn_is_not_shown_to_the_template() -> None:
    tokenizer = make_tokenizer(REFUSING)
    assert TEMPLATES["chat"].prompt("", tokenizer) == CASES["ChatML"].prompt.replace("Why?", "")
    assert tokenizer.decode(encode_target(TEMPLATES["chat"], "Why?", "", tokenizer)) == "<|im_end|>"


def test_white_space_around_a_solution_is_the_templates_affair() -> None:
    chat = TEMPLATES["chat"]
    for template, turn in ((CHATML, "\nSo.\n<|im_end|>"), (GEMMA, "So.<|im_end|>"), (LLAMA_2, " So. </s>")):
        tokenizer = make_tokenizer(template)
        assert tokenizer.decode(encode_target(chat, "Why? ", "\nSo.\n", tokenizer)) == turn


def test_a_thought_is_trained_on_as_it_is_written_and_never_lost() -> None:
    solution, thinking = "<think>Is it?</think>So. 7", TEMPLATES["chat-thinking"]
    tokenizer = make_tokenizer(QWEN_3)
    turn = "<think>\nIs it?\n</think>\n\nSo. 7<|im_end|>"
    assert tokenizer.decode(encode_target(thinking, "Why?", solution, tokenizer)) == turn
    tokenizer.chat_template = CHATML.replace("message.content", "message.content.split('</think>')[-1]")
    assert tokenizer.decode(encode_target(thinking, "Why?", solution, tokenizer)) == solution + "<|im_end|>"


def test_one_of_several_chat_templates_is_the_default() -> None:
    tokenizer = make_tokenizer(CHATML)
    tokenizer.chat_template = {"default": CHATML, "tool_use": "{{ raise_exception('no') }}"}
    assert get_template("auto", tokenizer).prompt("Why?", tokenizer) == CASES["ChatML"].prompt


def test_white_space_that_an_end_token_takes_in_is_no_token_of_the_target() -> None:
    tokenizer = make_tokenizer(CHATML.replace("'<|im_end|>", "' \n<|end|>"))
    tokenizer.add_tokens([AddedToken("<|end|>", special=True, lstrip=True)])
    assert tokenizer.convert_ids_to_tokens(encode_target(TEMPLATES["chat"], "Why?", "7", tokenizer)) == ["7", "<|end|>"]
