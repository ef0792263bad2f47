"""Finds the first answer in completions made elsewhere that repeat their prompt or go on with further turns.

Files hold whole conversations, with or without the texts of special tokens: ``user``, a blank line, the question,
``assistant`` directly after it. A turn begins with a special token's text, a role, or a label such as ``Question:``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_SPECIAL = r"<[|｜][\w▁-]+[|｜]>|<(?:start|end)_of_turn>|\[/?INST\]|</?s>|<bos>|<eos>"
_TURN = re.compile(
    rf"{_SPECIAL}|(?<! )(?:user|assistant)\n\n|^(?:system|user|assistant|model)\n"
    r"|### ?(?:Instruction|Input|Response|Question|Human|User|Assistant)\b|(?:USER|ASSISTANT):"
    r"|^(?:\*\*|#+ )?(?:Question|Problem|Human|User|Assistant|Instruction|Q)(?: \d+)?:"
    r"|Below is an instruction that describes a task",
    re.MULTILINE,
)
# Beginnings of an answer's turn, and of a question's.
_ANSWER = re.compile(
    rf"(?:{_SPECIAL})(?:assistant|model)(?:{_SPECIAL}|\n)\s*|<[|｜][Aa]ssistant[|｜]>|\[/INST\]|(?<! )assistant\n\n"
    r"|^(?:assistant|model)\n|### ?(?:Response|Assistant|Answer):?|ASSISTANT:|^Assistant:",
    re.MULTILINE,
)
_ASKED = re.compile(
    rf"(?:{_SPECIAL})user|<[|｜][Uu]ser[|｜]>|\[INST\]|(?<! )user\n\n|^user\n|### ?(?:Instruction|Question|Human|User)"
    r"|USER:|^(?:\*\*|#+ )?(?:Question|Problem|Human|User|Instruction|Q)(?: \d+)?:",
    re.MULTILINE,
)
_LABEL = re.compile(r"\s*(?:Answer|A|Solution|Response):")
_DIGIT = re.compile(r"\d")


@dataclass(frozen=True)
class FirstTurn:
    """A completion's first answer.

    Attributes:
        text: The answer; the whole completion if neither of the following holds.
        is_echo: Whether the prompt comes before it.
        runs_on: Whether further turns come after it.
    """

    text: str
    is_echo: bool
    runs_on: bool


def first_turns(rows: Sequence[tuple[str, str]]) -> list[FirstTurn]:
    """Returns the first answers of a file's ``(question, completion)`` pairs.

    A question belongs to the prompt if it comes first, if the completion begins with a turn, or if the text before it
    has no digits (so is no answer) and ends in a question's label or begins more than half of the completions that
    contain their question. Otherwise it belongs to a further turn if digits precede it, and to the answer if not.
    """
    places = [_pattern(question).search(completion) for question, completion in rows]
    befores = [
        completion[: place.start()] for (_, completion), place in zip(rows, places, strict=True) if place is not None
    ]
    common = {text for text, count in Counter(befores).items() if 2 * count > len(befores) > 1}
    return [_first_turn(completion, place, common) for (_, completion), place in zip(rows, places, strict=True)]


def _first_turn(completion: str, place: re.Match[str] | None, common: set[str]) -> FirstTurn:
    start = 0
    is_framed = _TURN.match(completion.lstrip()) is not None
    if place is not None:
        before = completion[: place.start()]
        labels = {label.end() for label in _ASKED.finditer(before)}
        is_prompt = not _DIGIT.search(before) and (before in common or len(before.rstrip()) in labels)
        start = place.end() if not before.strip() or is_framed or is_prompt else 0
    if start or is_framed:
        start = _answer_after(completion, start)
    further = [turn.start() for turn in _TURN.finditer(completion, start) if completion[start : turn.start()].strip()]
    if place is not None and (again := place.re.search(completion, start)) is not None:
        further += [again.start()] if _DIGIT.search(completion, start, again.start()) else []
    end = min(further, default=len(completion))
    is_echo, runs_on = (bool(_TURN.sub("", text).strip()) for text in (completion[:start], completion[end:]))
    return FirstTurn(completion[start:end] if is_echo or runs_on else completion, is_echo, runs_on)


def _answer_after(completion: str, start: int) -> int:
    """Returns where the answer begins, to a question that ends at ``start``, or to a whole prompt that begins at 0."""
    if label := _LABEL.match(completion, start):
        return label.end()
    header, asked = _ANSWER.search(completion, start), _ASKED.search(completion, start)
    is_next = header is not None and (start == 0 or asked is None or header.start() < asked.start())
    return header.end() if header is not None and is_next else start


def _pattern(question: str) -> re.Pattern[str]:
    """Matches the question with any white space: decoding drops some before punctuation. A role may follow directly."""
    letters = "".join(question.split())
    first = r"\b" if re.match(r"\w", letters) else ""
    last = r"(?:\b|(?=assistant|model|user))" if re.match(r"\w", letters[-1]) else ""
    return re.compile(first + r"\s*".join(map(re.escape, letters)) + last)
