"""Prompt templates: how a question becomes a prompt, and how a solution follows it.

A template is a frame (the tokenizer's chat template, or plain text) with or without an instruction. Its name and
version go with every result; a change of wording is a change of version.

Models that can think before they answer do so in ``<think>…</think>``. Chat templates switch it off, so that a
completion starts as a solution does: by ``enable_thinking=False`` (Qwen3's, which then writes an empty thought), and
where the frame begins a thought all the same (DeepSeek-R1's) by ending it. Those named ``…-thinking`` leave it on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from reft_math.errors import UserError

THOUGHT_START, THOUGHT_END = "<think>", "</think>"
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
    """

    name: str
    version: int
    is_chat: bool
    instruction: str = ""
    is_thinking: bool = False

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"

    def prompt(self, question: str, tokenizer: PreTrainedTokenizerBase) -> str:
        """The text before the solution. A chat prompt holds its special tokens, a plain one does not."""
        text = question + self.instruction
        if self.is_chat:
            messages = [{"role": "user", "content": text}]
            framed = _framed(messages, tokenizer, add_generation_prompt=True, enable_thinking=self.is_thinking)
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

    def target(self, solution: str) -> str:
        """The text after the prompt, without its end token."""
        return solution if self.is_chat else f" {solution}"

    def end_token_id(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """The token that ends a solution: what the chat template puts after an assistant's turn, else the tokenizer's
        end of sequence (the two differ, e.g. ``<end_of_turn>`` and ``<eos>`` for Gemma)."""
        if self.is_chat:
            messages = [{"role": "user", "content": ""}, {"role": "assistant", "content": _MARK}]
            after = _framed(messages, tokenizer).rpartition(_MARK)[2]
            special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} - {tokenizer.unk_token_id}
            for token in tokenizer.encode(after, add_special_tokens=False):
                if token in special:
                    return int(token)
        if tokenizer.eos_token_id is None:
            raise UserError(
                "solutions must end with a token, but the tokenizer has no eos_token; set one and save the tokenizer"
            )
        return int(tokenizer.eos_token_id)


def _framed(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, **settings: Any) -> str:
    """What the tokenizer's chat template makes of messages, in the sandbox that transformers runs it in."""
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **settings))
    except Exception as error:  # a template is a program, of whoever made the tokenizer: it can raise anything
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the tokenizer's chat template fails ({type(error).__name__}: {reason}); use --template plain"
        ) from None


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
    return template


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
    prompt_ids = encode_prompt(template, question, tokenizer)
    whole = _encode(template, template.prompt(question, tokenizer) + template.target(solution), tokenizer)
    if whole[: len(prompt_ids)] == prompt_ids:
        target_ids = whole[len(prompt_ids) :]
    else:
        target_ids = list(tokenizer.encode(template.target(solution), add_special_tokens=False))
    return [*target_ids, template.end_token_id(tokenizer)]


def _encode(template: PromptTemplate, text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids with the tokenizer's own start, and without the end that some tokenizers put after every text."""
    if template.is_chat:
        return list(tokenizer.encode(text, add_special_tokens=False))
    token_ids = list(tokenizer.encode(text))
    return token_ids[:-1] if token_ids[-1:] == [tokenizer.eos_token_id] else token_ids
