"""Makes statements, true and with one number changed, for faithfulness probes to tell apart.

A statement is a line or a sentence that holds a number: one from the question, repeated, with a given of the problem
to change (`givens`), or one from the worked solution, with a result to change (`results`: arithmetic truth). A problem
without a solution states its answer.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

from reft_math.data.problem import Problem
from reft_math.data.templates import encode_start
from reft_math.decoding.completions import CompletionSettings

_SEPARATOR = re.compile(r"\n+|(?<=[.?!])\s+|\Z")
_NUMBER = re.compile(r"(?<!\w)(?<!\d[.,])(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?!\w|[.,]\d)")
_LIST_MARK = re.compile(r"[0-9]+[.)]")
# If more or fewer is right, another number may be right, too.
_INEQUALITY = re.compile(r"[<>≤≥≠≈]|\\(?:[lg]eq?|[lg]t|neq?|approx)\b")
_EQUALS = re.compile(r"=[\s$€£−-]*\Z")
_OPERATOR = re.compile(r"\s*(?:[-−+*/×÷·^=]|[xX]\s*[\d(]|\\(?:cdot|times|div|pm))|\(")
_DRAWS = 10  # wrong numbers to try, for one with the same number of tokens


@dataclass(frozen=True)
class Statement:
    """A statement to make false.

    Attributes:
        text: The answer up to and including it.
        start, stop: Place in ``text`` of the number to change.
    """

    text: str
    start: int
    stop: int

    @property
    def number(self) -> str:
        return self.text[self.start : self.stop]

    def with_number(self, number: str) -> str:
        """Returns ``text`` with another number."""
        return self.text[: self.start] + number + self.text[self.stop :]


@dataclass(frozen=True)
class ProbeRow:
    """A problem's statements; the i-th correct and the i-th incorrect answer differ in one number.

    Attributes:
        id: The problem's id.
        question: As in `Problem`.
        correct_answers: The answer up to and including each statement.
        incorrect_answers: The same with a wrong number in that statement; those before it are right.
    """

    id: str
    question: str
    correct_answers: list[str]
    incorrect_answers: list[str]


def givens(problem: Problem) -> list[Statement]:
    """Returns every given number of the question in its sentence, alone; sentences that ask give nothing."""
    sentences = (problem.question[start:stop].strip() for start, stop in _sentences(problem.question))
    return [
        Statement(sentence, *number.span())
        for sentence in sentences
        if not sentence.endswith("?")
        for number in _NUMBER.finditer(sentence)
    ]


def results(problem: Problem) -> list[Statement]:
    """Returns the solution's statements that a changed number makes false, in order.

    In an equation the number is its last result, a number right after an equals sign that is not part of a term: a
    changed operand may leave a sum true (``2*0=3*0``). Elsewhere it is the last number. Inequalities, and equations
    whose result is not a plain number, are left out.
    """
    solution = problem.solution or f"The answer is {problem.answer}."
    found = []
    for start, stop in _sentences(solution):
        number = _number_to_change(solution[start:stop])
        if number is not None:
            text = solution[:stop].rstrip()
            found.append(Statement(text, start + number.start(), start + number.end()))
    return found


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    """Yields the start and end of each sentence."""
    start = 0
    for separator in _SEPARATOR.finditer(text):
        yield start, separator.start()
        start = separator.end()


def _number_to_change(statement: str) -> re.Match[str] | None:
    if _LIST_MARK.fullmatch(statement.strip()) or _INEQUALITY.search(statement):
        return None
    numbers = list(_NUMBER.finditer(statement))
    if "=" in statement:
        numbers = [
            number
            for number in numbers
            if _EQUALS.search(statement, 0, number.start()) and not _OPERATOR.match(statement, number.end())
        ]
    return numbers[-1] if numbers else None


def near_misses(number: str) -> list[str]:
    """Returns every number that differs in one digit, in the same format, without a new leading 0.

    Another digit at any place is another value: no near miss equals the number, however it is written.
    """
    return [
        number[:index] + digit + number[index + 1 :]
        for index, old in enumerate(number)
        if old.isdecimal()
        for digit in "0123456789"
        if digit != old and (digit != "0" or index > 0)
    ]


def probe_set(
    problems: Sequence[Problem],
    statements: Callable[[Problem], list[Statement]],
    count_tokens: Callable[[str], int],
    seed: int,
) -> list[ProbeRow]:
    """Returns a row for each problem that has statements.

    A wrong number is another statement's right number of the same format, so that numbers have the same distribution in
    true and false statements and no probe can use the number alone; or a near miss if no other has the format.

    Args:
        problems: Problems with or without solutions.
        statements: `givens` or `results`.
        count_tokens: Counts a text's tokens; changes that keep a text's length are preferred.
        seed: Seed of the wrong numbers, problem by problem.
    """
    found = [(problem, statements(problem)) for problem in problems]
    numbers: defaultdict[str, list[str]] = defaultdict(list)
    for statement in chain.from_iterable(right for _, right in found):
        numbers[_format(statement.number)].append(statement.number)
    rows = []
    for problem, right in found:
        rng = random.Random(f"faithfulness/{seed}/{problem.id}")
        wrong = [_falsified(statement, numbers[_format(statement.number)], count_tokens, rng) for statement in right]
        if right:
            rows.append(ProbeRow(problem.id, problem.question, [statement.text for statement in right], wrong))
    return rows


def _format(number: str) -> str:
    """Returns a number's format; two numbers of one format that are written differently differ in value."""
    return re.sub("[0-9]", "0", number)


def _falsified(
    statement: Statement, numbers: Sequence[str], count_tokens: Callable[[str], int], rng: random.Random
) -> str:
    others = [number for number in numbers if number != statement.number] or near_misses(statement.number)
    texts = [statement.with_number(number) for number in rng.sample(others, min(len(others), _DRAWS))]
    length = count_tokens(statement.text)
    return next((text for text in texts if count_tokens(text) == length), texts[0])


# --- as tokens ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StatementText:
    """A question and its solution up to a statement.

    Attributes:
        prompt: Token ids of the prompt.
        answer: Token ids after it; the last one ends the statement.
    """

    prompt: list[int]
    answer: list[int]

    @property
    def token_ids(self) -> list[int]:
        return [*self.prompt, *self.answer]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


@dataclass(frozen=True)
class StatementPair:
    """A statement, true and false.

    Attributes:
        problem: The problem's id.
        position: Number of the problem's earlier statements.
        true, false: Two texts that differ in one number.
    """

    problem: str
    position: int
    true: StatementText
    false: StatementText

    @property
    def id(self) -> str:
        return f"{self.problem}/{self.position}"

    @property
    def texts(self) -> tuple[StatementText, StatementText]:
        return self.true, self.false


def encode_pairs(rows: Sequence[ProbeRow], decoding: CompletionSettings) -> list[StatementPair]:
    """Encodes every pair of a probe set as a model reads it."""
    prompts = [prompt.tolist() for prompt in decoding.prompts([row.question for row in rows])]
    return [
        StatementPair(row.id, position, *map(partial(_encode, decoding, row.question, prompt), answers))
        for row, prompt in zip(rows, prompts, strict=True)
        for position, answers in enumerate(zip(row.correct_answers, row.incorrect_answers, strict=True))
    ]


def _encode(decoding: CompletionSettings, question: str, prompt: list[int], answer: str) -> StatementText:
    return StatementText(prompt, encode_start(decoding.template, question, answer, decoding.tokenizer))
