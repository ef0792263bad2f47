"""Prompt templates: how a question becomes a prompt, and how a solution follows it.

A template is a frame (the tokenizer's chat template, or plain text) with or without an instruction. Its name and
version go with every result; a change of wording is a change of version.

A chat template is a program, of whoever made the tokenizer. What it makes of a conversation is looked at: what was said
must be in it. The date it asks for is `DATE`, today and tomorrow. What follows a prompt in training is what it writes
after one.

Models that can think before they answer do so in ``<think>…</think>``. Chat templates switch it off, so that a
completion starts as a solution does: by ``enable_thinking=False`` (Qwen3's, which then writes an empty thought), and
where the frame begins a thought all the same (DeepSeek-R1's) by ending it. Those named ``…-thinking`` leave it on.
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
DATE = date(2024, 7, 26)  # the day that Llama 3's templates take where there is no clock
_ANOTHER_DAY = date(1999, 1, 3)
_MARK = "SOLUTION"  # shows where in a frame a text stands
_STEP_BY_STEP = "\nLet's think step by step."
_BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True)
class PromptTemplate:
    """``prompt = frame(question + instruction)``.

    Attributes:
        name: What ``--template`` takes.
        version: Counts changes of wording.
        is_chat: Framed by the tokenizer's chat template instead of ``Question: … Answer:``.
        instruction: Text after the question.
        is_thinking: Whether the model is to think before it answers.
        day: The day that prompts name, where the tokenizer's chat template has them name one.
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
        """Whether these are the words of ``chat/1`` or ``chat/1@2024-07-26``; versions before there was one wrote no
        date, and on another base the chat template may ask for none."""
        name, _, day = text.partition("@")
        return name == f"{self.name}/{self.version}" and day in ("", str(DATE))

    def prompt(self, question: str, tokenizer: PreTrainedTokenizerBase) -> str:
        """The text before the solution. A chat prompt holds its special tokens, a plain one does not.

        Raises:
            UserError: The chat template fails, or leaves the question out.
        """
        text = question + self.instruction
        if self.is_chat:
            framed = self._framed([text], tokenizer, add_generation_prompt=True)
            return framed if self.is_thinking else _end_thought(framed)
        return f"Question: {text}\nAnswer:"

    def has_framed(self, prompt: str, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether a prompt is this template's of some question: one frame (no examples before it), no more instruction.

        White space and line breaks a frame shares with any question; special tokens a question has none of.
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
        """The text after the prompt where a solution starts so: with the space, if any, that stands before it."""
        return (self._around(tokenizer)[0] if self.is_chat else " ") + start

    def turn(self, question: str, solution: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, int]:
        """The text after the prompt, with the end token where the chat template writes one, and the token that ends it.

        The text is what the chat template writes of the whole conversation after the prompt, white space of its own and
        all. Where a prompt is not the beginning of that (thoughts that are switched off, or left out of a past turn),
        the solution follows the prompt as it is.

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
        """The token that ends a solution: what the chat template puts after an assistant's turn, else the tokenizer's
        end of sequence (the two differ, e.g. ``<end_of_turn>`` and ``<eos>`` for Gemma)."""
        return _end(self._around(tokenizer)[1], tokenizer)[0] if self.is_chat else _eos(tokenizer)

    def stops(self, tokenizer: PreTrainedTokenizerBase) -> tuple[set[int], tuple[str, ...]]:
        """What begins the next question, where a completion ends though the model may go on: tokens, and texts.

        Between a chat template's turns stands a special token, or plain text, such as a token that the tokenizer lacks.
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
        """What the chat template writes between the prompt and a solution, and after that."""
        before, _, after = self._framed([_MARK + self.instruction, _MARK], tokenizer).rpartition(_MARK)
        prompt = self.prompt(_MARK, tokenizer)
        return before.removeprefix(prompt) if before.startswith(prompt) else "", after

    def _framed(self, turns: Sequence[str], tokenizer: PreTrainedTokenizerBase, **settings: Any) -> str:
        """`framed` turns, the user's first. An empty one is not shown to the chat template, which may refuse it."""
        texts = [turn if turn.strip() else _MARK for turn in turns]
        found = framed(_messages(texts), tokenizer, enable_thinking=self.is_thinking, **settings)
        return found if all(map(str.strip, turns)) else found.replace(_MARK, "")


def framed(messages: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase, **settings: Any) -> str:
    """What the tokenizer's chat template makes of messages, in the sandbox that transformers runs it in, on `DATE`.

    Contents are given as text, and as parts (``[{"type": "text", "text": …}]``) to a template that reads them so.

    Args:
        messages: ``role`` and ``content``.
        tokenizer: One with a chat template.
        settings: As of ``apply_chat_template``.

    Raises:
        UserError: The template fails, or the text has not each of the contents in it.
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
        except Exception as error:  # a template is a program, of whoever made the tokenizer: it can raise anything
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
    """The beginning of a chat template in which ``strftime_now`` is of this day, at midnight."""
    texts = {f"%{code}": day.strftime(f"%{code}") for code in "aAbBcdHIjmMpSUwWxXyY"}
    texts |= {"%-d": f"{day.day}", "%-m": f"{day.month}", "%e": f"{day.day:2}", "%F": f"{day}"}
    replaced = "".join(f"|replace({code!r},{text!r})" for code, text in texts.items())
    return f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n"


def _end(after: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, str]:
    """The token that ends a turn, in what is written after it, and the text up to its end.

    The tokenizer's end of sequence, and no text, where no special token is written.
    """
    token, before, text = _first_special(after, tokenizer)
    return (_eos(tokenizer), "") if token is None else (token, before + text if text else "")


def _first_special(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, str, str]:
    """The first special token, the text before it, and its own; None where there is none."""
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
    """With an empty thought, written as Qwen3 does, in place of one that is only begun."""
    begun = prompt.rstrip()
    return f"{begun}\n\n{THOUGHT_END}\n\n" if begun.endswith(THOUGHT_START) else prompt


def without_thoughts(completion: str) -> str:
    """What follows the last thought: the answer. Nothing, where the thought that it begins with has no end."""
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


BARE = BareTemplate("bare", 1, is_chat=False)  # regression's alone: any text is its prompt


def get_template(name: str, tokenizer: PreTrainedTokenizerBase) -> PromptTemplate:
    """The template of that name; ``auto`` is ``chat`` where the tokenizer has a chat template and ``plain`` elsewhere.

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
    """Whether prompts would be others if nothing but the clock told the chat template the date."""
    messages = _messages([_MARK])
    return _rendered(messages, tokenizer, _ANOTHER_DAY) != framed(messages, tokenizer)


def check_thoughts(template: PromptTemplate, solutions: Iterable[str]) -> None:
    """Raises `UserError` for solutions without thoughts to train a thinking mode on: no completion starts like them."""
    if template.is_thinking and not all(THOUGHT_END in solution for solution in solutions):
        raise UserError(
            f"template {template.name!r} is trained on solutions that begin with a thought, up to {THOUGHT_END};"
            f" these do not all: use --template {template.name.removesuffix('-thinking')}"
        )


def encode_prompt(template: PromptTemplate, question: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The prompt's token ids, special tokens once (a chat template has written them already)."""
    return _encode(template, template.prompt(question, tokenizer), tokenizer)


def encode_target(
    template: PromptTemplate, question: str, solution: str, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """The solution's token ids as they follow the prompt, with the end token.

    Tokenised together with the prompt where that leaves the prompt's tokens alone, so that no tokenizer puts a word
    boundary of its own at the seam; on its own otherwise, for the prompt's tokens are what decoding starts from.
    """
    text, end = template.turn(question, solution, tokenizer)
    target_ids = _encode_after(template, template.prompt(question, tokenizer), text, tokenizer)
    return target_ids if target_ids[-1:] == [end] else [*target_ids, end]


def encode_start(template: PromptTemplate, question: str, start: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """As `encode_target` of a solution that starts so, without what comes after."""
    text = template.target(start, tokenizer)
    return _encode_after(template, template.prompt(question, tokenizer), text, tokenizer)


def _encode_after(template: PromptTemplate, prompt: str, text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    prompt_ids, whole = (_encode(template, each, tokenizer) for each in (prompt, prompt + text))
    if whole[: len(prompt_ids)] == prompt_ids:
        return whole[len(prompt_ids) :]
    return list(tokenizer.encode(text, add_special_tokens=False))


def _encode(template: PromptTemplate, text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids with the tokenizer's own start, and without the end that some tokenizers put after every text."""
    if template.is_chat:
        return list(tokenizer.encode(text, add_special_tokens=False))
    token_ids = list(tokenizer.encode(text))
    return token_ids[:-1] if token_ids[-1:] == [tokenizer.eos_token_id] else token_ids
