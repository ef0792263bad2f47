"""Makes texts from which probes read numbers, and sums to solve; finds the token that ends each number."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from reft_math.data.arithmetic.problems import EVENTS, OPENERS, QUESTION, START
from reft_math.data.problem import Problem
from reft_math.data.templates import PromptTemplate
from reft_math.errors import UserError

Role = Literal["operand", "result", "upcoming"]

_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?")
_IS_RESULT = re.compile(r"=\s*\$?\Z")
_ANSWER = re.compile(rf"\s*\$?({_NUMBER.pattern})")

_STORY = (START + EVENTS["+"][0] + QUESTION).format(
    name="Anna", owner="Anna", pronoun="She", items="apples", amount="{}"
)
# A question about a sum and the beginning of its solution; the result comes next.
FORMS = {"worked": (_STORY, OPENERS["stepwise"] + "{}+{}="), "asked": ("What is {}+{}?", "{}+{}=")}


@dataclass(frozen=True)
class NumberToken:
    """A number and the token from which to read it.

    Attributes:
        token: Index in the text of the number's last token or, for an ``upcoming`` result, of the one before its first.
        value: The number.
        role: ``operand``, given or carried over; ``result``, after an equals sign; ``upcoming``.
        place: Role and count in the text: ``question 2``, ``term 1``, ``result 1``, ``upcoming 1``.
    """

    token: int
    value: float
    role: Role
    place: str


@dataclass(frozen=True)
class ProbeText:
    """A problem with its solution as tokens.

    Attributes:
        problem: The problem's id.
        token_ids: Token ids that the model reads.
        readings: The numbers.
    """

    problem: str
    token_ids: list[int]
    readings: list[NumberToken]


@dataclass(frozen=True)
class Sum:
    """A sum ``a + b``, to solve or to read with its solution."""

    a: int
    b: int

    @property
    def result(self) -> int:
        return self.a + self.b

    def parts(self, form: str) -> tuple[str, str]:
        """Returns the question and the beginning of the solution in one of `FORMS`."""
        question, start = FORMS[form]
        return question.format(self.a, self.b), start.format(self.a, self.b)

    def solved(self, form: str) -> Problem:
        """Returns the sum as a problem with its result."""
        question, start = self.parts(form)
        return Problem(f"sum/{self.a}+{self.b}", question, str(self.result), f"{start}{self.result}")

    def prompt(self, form: str, template: PromptTemplate, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Returns token ids up to the place of the result."""
        question, start = self.parts(form)
        return _encode(template, template.prompt(question, tokenizer) + template.target(start, tokenizer), tokenizer)[0]


def draw_sums(digits: int, count: int, seed: int) -> list[Sum]:
    """Draws sums of two numbers with ``digits`` digits, no pair twice in either order.

    Raises:
        UserError: There are fewer than ``count``.
    """
    first, last = 10 ** (digits - 1), 10**digits - 1
    numbers = last - first + 1
    if count > numbers * (numbers + 1) // 2:
        raise UserError(
            f"there are {numbers * (numbers + 1) // 2} sums of two numbers of {digits} digits, and {count} are needed;"
            " take more --digits or fewer --sums"
        )
    rng = random.Random(f"sums/{digits}/{seed}")
    drawn: dict[tuple[int, int], Sum] = {}
    while len(drawn) < count:
        a, b = rng.randint(first, last), rng.randint(first, last)
        drawn.setdefault((min(a, b), max(a, b)), Sum(a, b))
    return list(drawn.values())


def read_answer(text: str) -> int | float | None:
    """Returns the number with which a continuation starts; None if it starts with anything else."""
    found = _ANSWER.match(text)
    return None if found is None else _value(found[1])


def probe_text(
    problem: Problem, template: PromptTemplate, tokenizer: PreTrainedTokenizerBase, largest: float
) -> ProbeText:
    """Returns a problem's question and solution as tokens, with the numbers in ``(0, largest]``.

    The solution ends before GSM8K's ``####``, which repeats the answer: a copy is not read.

    Raises:
        UserError: The tokenizer does not give its tokens' places in the text.
    """
    question, (solution, _, _) = problem.question.strip(), problem.solution.partition("####")
    prompt = template.prompt(problem.question, tokenizer)
    text = prompt + template.target(solution, tokenizer)
    token_ids, ends = _encode(template, text, tokenizer)

    def token_at(character: int) -> int:
        return next(index for index, end in enumerate(ends) if end > character)

    asked = prompt.index(question)  # a chat template may contain numbers, such as today's date
    spans = [(asked, asked + len(question), "question"), (len(prompt), len(text), "term")]
    counts: Counter[str] = Counter()
    readings: list[NumberToken] = []
    for start, stop, kind in spans:
        for found in _NUMBER.finditer(text, start, stop):
            is_result = kind == "term" and _IS_RESULT.search(text, start, found.start()) is not None
            place = "result" if is_result else kind
            counts[place] += 1
            value = _value(found[0])
            if not 0 < value <= largest:
                continue
            role: Role = "result" if is_result else "operand"
            readings.append(NumberToken(token_at(found.end() - 1), value, role, f"{place} {counts[place]}"))
            if is_result:
                before = token_at(found.start()) - 1
                readings.append(NumberToken(before, value, "upcoming", f"upcoming {counts[place]}"))
    return ProbeText(problem.id, token_ids, readings)


def _value(number: str) -> int | float:
    value = float(number.replace(",", ""))
    return int(value) if value.is_integer() else value


def _encode(template: PromptTemplate, text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Returns token ids, and the place in the text where each token ends."""
    if not tokenizer.is_fast:
        raise UserError(f"numbers are found through a fast tokenizer's offsets; {type(tokenizer).__name__} has none")
    encoded = tokenizer(text, add_special_tokens=not template.is_chat, return_offsets_mapping=True)
    token_ids, ends = list(encoded["input_ids"]), [end for _, end in encoded["offset_mapping"]]
    if not template.is_chat and token_ids[-1:] == [tokenizer.eos_token_id]:
        return token_ids[:-1], ends[:-1]
    return token_ids, ends
