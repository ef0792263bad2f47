"""Prompt templates: turn a question into a prompt, and place a solution after it.

A template is a frame (the tokenizer's chat template, or plain text) with or without an instruction. Every result
records its name and version; a change of wording is a new version.

A chat template is a program by the tokenizer's author. Its output is checked: it must contain every message. The date
that it asks for is always `DATE`. In training, the solution follows a prompt exactly as the chat template writes it.

Models that can think before they answer do so in ``<think>…</think>``. Chat templates switch thinking off, so that a
completion starts like a solution: by ``enable_thinking=False`` (Qwen3's, which then writes an empty thought), or by
ending the thought if the frame still begins one (DeepSeek-R1's). Those named ``…-thinking`` leave it on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from reft_math.errors import UserError

THOUGHT_START, THOUGHT_END = "<think>", "</think>"
DATE = date(2024, 7, 26)  # the default day of Llama 3's templates without a clock
_ANOTHER_DAY = date(1999, 1, 3)
_MARK = "SOLUTION"  # marks a text's place in a frame
_STEP_BY_STEP = "\nLet's think step by step."
_BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True)
class PromptTemplate:
    """``prompt = frame(question + instruction)``.

    Attributes:
        name: Name for ``--template``.
        version: Number of the wording.
        is_chat: Whether the tokenizer's chat template is the frame, instead of ``Question: … Answer:``.
        instruction: Text after the question.
        is_thinking: Whether the model is to think before it answers.
        day: The day that prompts name, if the tokenizer's chat template names one.
    """

    name: str
    version: int
    is_chat: bool
    instruction: str = ""
    is_thinking: bool = False
    day: date | None = None

    def __str__(self) -> str:
        return f"{self.name}/{self.version}" + (f"@{self.day}" if self.day else "")

    def is_recorded_as(self, text: str) -> bool:
        """Returns whether ``text``, such as ``chat/1`` or ``chat/1@2024-07-26``, names this template. The date may be
        missing: earlier versions wrote none, and the chat template of another base may ask for none."""
        name, _, day = text.partition("@")
        return name == f"{self.name}/{self.version}" and day in ("", str(DATE))

    def prompt(self, question: str, tokenizer: PreTrainedTokenizerBase) -> str:
        """Returns the text before the solution. A chat prompt holds its special tokens, a plain one does not.

        Raises:
            UserError: The chat template fails, or leaves the question out.
        """
        text = question + self.instruction
        if self.is_chat:
            framed = self._framed([text], tokenizer, add_generation_prompt=True)
            return framed if self.is_thinking else _end_thought(framed)
        return f"Question: {text}\nAnswer:"

    def has_framed(self, prompt: str, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Returns whether a prompt is a question in this template: one frame (no examples), no further instruction.

        A frame may share white space and line breaks with a question; a question has no special tokens.
        """
        before, _, after = self.prompt(_MARK, tokenizer).partition(_MARK)
        if not (prompt.startswith(before) and prompt.removeprefix(before).endswith(after)):
            return False
        question = prompt[len(before) : len(prompt) - len(after)]
        frames = [part for part in (before, after) if part.strip()]
        instructions = [template.instruction for template in TEMPLATES.values() if template.instruction]
        return not any(part in question for part in (*frames, *tokenizer.all_special_tokens)) and not any(
            question.endswith(instruction) for instruction in instructions
        )

    def target(self, start: str, tokenizer: PreTrainedTokenizerBase) -> str:
        """Returns the text after the prompt for a solution with this start, with the space before it, if any."""
        return (self._around(tokenizer)[0] if self.is_chat else " ") + start

    def turn(self, question: str, solution: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, int]:
        """Returns the text after the prompt, with the end token if the chat template writes one, and that token's id.

        The text is what the chat template writes after the prompt in the whole conversation, with its own white space.
        If the conversation does not begin with the prompt (thoughts that are switched off, or left out of a past turn),
        the solution follows the prompt unchanged.

        Raises:
            UserError: The chat template fails or leaves something out, or neither it nor the tokenizer names an end.
        """
        if not self.is_chat:
            return self.target(solution, tokenizer), _eos(tokenizer)
        prompt = self.prompt(question, tokenizer)
        whole = self._framed([question + self.instruction, solution], tokenizer)
        before, after = self._around(tokenizer)
        token, end = _end(after, tokenizer)
        if whole.startswith(prompt) and whole.endswith(after):
            written = whole[len(prompt) : len(whole) - len(after)]
            if THOUGHT_END in written or THOUGHT_END not in solution:
                return written + end, token
        return before + solution + end, token

    def end_token_id(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Returns the token that ends a solution: the one that the chat template puts after an assistant's turn, else
        the tokenizer's end of sequence (for Gemma e.g. ``<end_of_turn>`` and ``<eos>``)."""
        return _end(self._around(tokenizer)[1], tokenizer)[0] if self.is_chat else _eos(tokenizer)

    def stops(self, tokenizer: PreTrainedTokenizerBase) -> tuple[set[int], tuple[str, ...]]:
        """Returns tokens and texts that begin the next question, at which a completion ends even if the model goes on.

        Chat templates separate turns by a special token or plain text, such as a token that the tokenizer lacks.
        """
        if not self.is_chat:
            return set(), ("Question:",)
        try:
            between = self._framed([_MARK, _MARK, _MARK], tokenizer).rpartition(_MARK)[0].rpartition(_MARK)[2]
        except UserError:  # a template of two turns
            return set(), ()
        token, before, _ = _first_special(between, tokenizer)
        return ({token} if token is not None else set()), ((before.strip(),) if before.strip() else ())

    def _around(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
        """Returns the chat template's text between the prompt and a solution, and its text after the solution."""
        before, _, after = self._framed([_MARK + self.instruction, _MARK], tokenizer).rpartition(_MARK)
        prompt = self.prompt(_MARK, tokenizer)
        return before.removeprefix(prompt) if before.startswith(prompt) else "", after

    def _framed(self, turns: Sequence[str], tokenizer: PreTrainedTokenizerBase, **settings: Any) -> str:
        """Returns `framed` turns, the user's first. Empty turns are left out: the chat template may refuse them."""
        texts = [turn if turn.strip() else _MARK for turn in turns]
        found = framed(_messages(texts), tokenizer, enable_thinking=self.is_thinking, **settings)
        return found if all(map(str.strip, turns)) else found.replace(_MARK, "")


def framed(messages: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase, **settings: Any) -> str:
    """Applies the tokenizer's chat template to messages, in transformers' sandbox, on `DATE`.

    Contents are passed as text, or as parts (``[{"type": "text", "text": …}]``) if the template reads those.

    Args:
        messages: Messages with ``role`` and ``content``.
        tokenizer: A tokenizer with a chat template.
        settings: Arguments of ``apply_chat_template``.

    Raises:
        UserError: The template fails, or its text lacks one of the contents.
    """
    return _rendered(messages, tokenizer, DATE, date_string=f"{DATE:%d %b %Y}", **settings)


def _rendered(
    messages: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase, day: date, **settings: Any
) -> str:
    reasons = []
    for as_parts in (False, True):
        contents = [[{"type": "text", "text": each["content"]}] if as_parts else each["content"] for each in messages]
        asked = [{**each, "content": content} for each, content in zip(messages, contents, strict=True)]
        try:
            template = _clock(day) + tokenizer.get_chat_template(settings.get("chat_template"))
            text = str(tokenizer.apply_chat_template(asked, tokenize=False, **{**settings, "chat_template": template}))
        except Exception as error:  # a template is a program by the tokenizer's author: it can raise anything
            reasons.append(f"fails ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
            continue
        # Past thoughts may be left out.
        if all(without_thoughts(each["content"]).strip() in text for each in messages):
            return text
        reasons.append("leaves out what it is given, as text and as parts")
    raise UserError(f"the tokenizer's chat template {reasons[0]}; use --template plain")


def _messages(turns: Iterable[str]) -> list[dict[str, str]]:
    return [{"role": role, "content": turn} for role, turn in zip(("user", "assistant", "user"), turns, strict=False)]


@cache
def _clock(day: date) -> str:
    """Returns the beginning of a chat template that defines ``strftime_now`` as this day, at midnight."""
    texts = {f"%{code}": day.strftime(f"%{code}") for code in "aAbBcdHIjmMpSUwWxXyY"}
    texts |= {"%-d": f"{day.day}", "%-m": f"{day.month}", "%e": f"{day.day:2}", "%F": f"{day}"}
    replaced = "".join(f"|replace({code!r},{text!r})" for code, text in texts.items())
    return f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n"


def _end(after: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, str]:
    """Returns the token that ends a turn, from the text after the turn, and that text up to the token's end.

    If no special token is written, it is the tokenizer's end of sequence and no text.
    """
    token, before, text = _first_special(after, tokenizer)
    return (_eos(tokenizer), "") if token is None else (token, before + text if text else "")


def _first_special(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, str, str]:
    """Returns the first special token, the text before it, and its own text; None if there is no special token."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} - {tokenizer.unk_token_id}
    token = next((token for token in tokenizer.encode(text, add_special_tokens=False) if token in special), None)
    own = "" if token is None else str(tokenizer.convert_ids_to_tokens(token))
    before, own, _ = text.partition(own) if own else (text, "", "")
    return token, before, own


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise UserError(
            "solutions must end with a token, but the tokenizer has no eos_token; set one and save the tokenizer"
        )
    return int(tokenizer.eos_token_id)


def _end_thought(prompt: str) -> str:
    """Replaces a thought that is only begun by an empty one, written as Qwen3 does."""
    begun = prompt.rstrip()
    return f"{begun}\n\n{THOUGHT_END}\n\n" if begun.endswith(THOUGHT_START) else prompt


def without_thoughts(completion: str) -> str:
    """Returns the text after the last thought, the answer; empty if the completion's first thought has no end."""
    answer = completion.rpartition(THOUGHT_END)[2]
    return "" if answer.lstrip().startswith(THOUGHT_START) else answer


TEMPLATES = {
    template.name: template
    for template in (
        PromptTemplate("chat", 1, is_chat=True),
        PromptTemplate("chat-step-by-step", 1, is_chat=True, instruction=_STEP_BY_STEP),
        PromptTemplate("chat-boxed", 1, is_chat=True, instruction=_BOXED),
        PromptTemplate("chat-thinking", 1, is_chat=True, is_thinking=True),
        PromptTemplate("chat-step-by-step-thinking", 1, is_chat=True, instruction=_STEP_BY_STEP, is_thinking=True),
        PromptTemplate("chat-boxed-thinking", 1, is_chat=True, instruction=_BOXED, is_thinking=True),
        PromptTemplate("plain", 1, is_chat=False),
        PromptTemplate("plain-step-by-step", 1, is_chat=False, instruction=_STEP_BY_STEP),
        PromptTemplate("plain-boxed", 1, is_chat=False, instruction=_BOXED),
    )
}


@dataclass(frozen=True)
class BareTemplate(PromptTemplate):
    """``prompt = text``: for texts that end where the answer begins."""

    def prompt(self, question: str, tokenizer: PreTrainedTokenizerBase) -> str:
        return question


BARE = BareTemplate("bare", 1, is_chat=False)  # for regression only: any text is its prompt


def get_template(name: str, tokenizer: PreTrainedTokenizerBase) -> PromptTemplate:
    """Returns the template of that name; ``auto`` is ``chat`` if the tokenizer has a chat template, else ``plain``.

    Raises:
        UserError: An unknown name, or a chat template or thinking mode that the tokenizer does not have.
    """
    if name == "auto":
        name = "chat" if tokenizer.chat_template else "plain"
    if name not in TEMPLATES:
        raise UserError(f"template must be auto or one of {', '.join(TEMPLATES)}; got {name!r}")
    template = TEMPLATES[name]
    if template.is_chat and not tokenizer.chat_template:
        raise UserError(
            f"template {name!r} needs a tokenizer with a chat template; this one has none: use --template plain"
        )
    off = replace(template, is_thinking=False)
    if template.is_thinking and template.prompt("", tokenizer) == off.prompt("", tokenizer):
        raise UserError(
            f"template {name!r} needs a chat template with a thinking mode, and the tokenizer's has none;"
            f" use --template {name.removesuffix('-thinking')}"
        )
    return replace(template, day=DATE) if template.is_chat and _names_a_day(tokenizer) else template


def _names_a_day(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Returns whether the chat template's prompts depend on the clock's date."""
    messages = _messages([_MARK])
    return _rendered(messages, tokenizer, _ANOTHER_DAY) != framed(messages, tokenizer)


def check_thoughts(template: PromptTemplate, solutions: Iterable[str]) -> None:
    """Raises `UserError` for solutions without thoughts in a thinking mode: no completion starts like them."""
    if template.is_thinking and not all(THOUGHT_END in solution for solution in solutions):
        raise UserError(
            f"template {template.name!r} is trained on solutions that begin with a thought, up to {THOUGHT_END};"
            f" these do not all: use --template {template.name.removesuffix('-thinking')}"
        )


def encode_prompt(template: PromptTemplate, question: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the prompt's token ids, with special tokens once (a chat template has already written them)."""
    return _encode(template, template.prompt(question, tokenizer), tokenizer)


def encode_target(
    template: PromptTemplate, question: str, solution: str, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Returns the solution's token ids after the prompt, with the end token.

    It is tokenised together with the prompt if that keeps the prompt's tokens, so that no tokenizer adds a word
    boundary between the two; otherwise alone, since decoding starts from the prompt's tokens.
    """
    text, end = template.turn(question, solution, tokenizer)
    target_ids = _encode_after(template, template.prompt(question, tokenizer), text, tokenizer)
    return target_ids if target_ids[-1:] == [end] else [*target_ids, end]


def encode_start(template: PromptTemplate, question: str, start: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the token ids of a solution's start, as `encode_target` would begin."""
    text = template.target(start, tokenizer)
    return _encode_after(template, template.prompt(question, tokenizer), text, tokenizer)


def _encode_after(template: PromptTemplate, prompt: str, text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    prompt_ids, whole = (_encode(template, each, tokenizer) for each in (prompt, prompt + text))
    if whole[: len(prompt_ids)] == prompt_ids:
        return whole[len(prompt_ids) :]
    return list(tokenizer.encode(text, add_special_tokens=False))


def _encode(template: PromptTemplate, text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns token ids with the tokenizer's own start, without the end that some tokenizers put after every text."""
    if template.is_chat:
        return list(tokenizer.encode(text, add_special_tokens=False))
    token_ids = list(tokenizer.encode(text))
    return token_ids[:-1] if token_ids[-1:] == [tokenizer.eos_token_id] else token_ids
