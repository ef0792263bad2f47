"""Makes word problems of a closed world: a quantity, a few events that change it, a question, three answer styles.

A problem starts from ``v_0`` and applies 2-4 events ``v_{i+1} = v_i ∘ c_i`` with ``∘ ∈ {+, -, *, /}``; every value is a
whole number in ``[1, 199]`` and every added or removed amount has at most two digits. Solutions come in three styles:

- ``at_once``:  ``The answer is 56.``                                 all steps in the head, one number written;
- ``combined``: ``In one line: (23+14)*2-18=56``                      the expression first, then all steps in the head;
- ``stepwise``: ``Let us go step by step.`` ``23+14=37`` ``37*2=74`` …  one step per line.

Each ends with ``#### 56`` like GSM8K. A split is a function of the question's text, so the splits are disjoint for any
seeds.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args
from zlib import crc32

from reft_math.data.problem import Problem

Style = Literal["at_once", "combined", "stepwise"]
Split = Literal["pretrain", "train", "validation", "test"]
STYLES: tuple[Style, ...] = get_args(Style)

MIN_STEPS, MAX_STEPS = 2, 4
MAX_VALUE = 199
MAX_AMOUNT = 99

WOMEN = ("Anna", "Maria", "Lucy", "Nina")
MEN = ("Tom", "Ben", "Omar", "Paul")
ITEMS = ("apples", "marbles", "stamps", "coins", "books", "cards", "shells", "pens")

OPENERS: dict[Style, str] = {
    "at_once": "The answer is",
    "combined": "In one line:",
    "stepwise": "Let us go step by step.\n",
}

START = "{name} has {amount} {items}."
EVENTS: dict[str, tuple[str, ...]] = {
    "+": (
        " {pronoun} buys {amount} more.",
        " {pronoun} finds {amount} {items}.",
        " {friend} gives {name} {amount} more {items}.",
    ),
    "-": (
        " {pronoun} gives {amount} to {friend}.",
        " {pronoun} loses {amount} {items}.",
        " {pronoun} sells {amount} of the {items}.",
    ),
    "*2": (" Then the number of {items} doubles.",),
    "*3": (" Then the number of {items} triples.",),
    "/2": (" {pronoun} gives half of the {items} to {friend}.",),
}
COMPARISONS = {
    "+": " {friend} has {amount} more {items} than {name}.",
    "-": " {friend} has {amount} fewer {items} than {name}.",
}
QUESTION = " How many {items} does {owner} have now?"

_SPLIT_SHARES: tuple[tuple[Split, int], ...] = (("test", 5), ("validation", 10), ("train", 25), ("pretrain", 100))


@dataclass(frozen=True)
class Step:
    """``before ∘ operand = after``; ``operator`` is one of ``+ - * /``."""

    before: int
    operator: str
    operand: int
    after: int

    def __str__(self) -> str:
        return f"{self.before}{self.operator}{self.operand}={self.after}"


@dataclass(frozen=True)
class WordProblem:
    """A question and the arithmetic it describes."""

    question: str
    steps: tuple[Step, ...]

    @property
    def answer(self) -> int:
        return self.steps[-1].after


def split_of(question: str) -> Split:
    """Returns the split of a question: 5 % test, 5 % validation, 15 % train (finetuning), the rest pretrain."""
    bucket = crc32(question.encode()) % 100
    return next(split for split, upper in _SPLIT_SHARES if bucket < upper)


def word_problem(rng: random.Random, num_steps: int) -> WordProblem:
    """Draws one problem of ``num_steps`` events."""
    names = WOMEN + MEN
    name, friend = rng.sample(names, 2)
    words = {
        "name": name,
        "friend": friend,
        "pronoun": "She" if name in WOMEN else "He",
        "items": rng.choice(ITEMS),
    }
    value = rng.randint(2, MAX_AMOUNT)
    text = START.format(amount=value, **words)
    steps: list[Step] = []
    compares = rng.random() < 0.25
    for index in range(num_steps):
        is_comparison = compares and index == num_steps - 1
        kind, step = _draw_step(rng, value, kinds="+-" if is_comparison else None)
        template = COMPARISONS[kind] if is_comparison else rng.choice(EVENTS[kind])
        text += template.format(amount=step.operand, **words)
        steps.append(step)
        value = step.after
    text += QUESTION.format(owner=friend if compares else name, items=words["items"])
    return WordProblem(text, tuple(steps))


def _draw_step(rng: random.Random, value: int, kinds: str | None) -> tuple[str, Step]:
    """Draws a step that keeps the value in range; multiplying and halving are rarer than adding and subtracting."""
    while True:
        kind = rng.choice(kinds or ("+", "+", "+", "-", "-", "-", "*2", "*3", "/2"))
        operator, operand = kind[0], int(kind[1:] or rng.randint(2, MAX_AMOUNT))
        if operator == "/" and value % operand:
            continue
        after = _apply(value, operator, operand)
        if 1 <= after <= MAX_VALUE:
            return kind, Step(value, operator, operand, after)


def _apply(value: int, operator: str, operand: int) -> int:
    return {"+": value + operand, "-": value - operand, "*": value * operand, "/": value // operand}[operator]


def solution(problem: WordProblem, style: Style) -> str:
    """Returns the worked solution in one style, ending with ``#### answer``."""
    answer = problem.answer
    if style == "at_once":
        body = f" {answer}.\n"
    elif style == "combined":
        body = f" {expression(problem.steps)}={answer}\n"
    else:
        body = "".join(f"{step}\n" for step in problem.steps)
    return f"{OPENERS[style]}{body}#### {answer}"


def expression(steps: tuple[Step, ...]) -> str:
    """Returns the steps as one expression, e.g. ``(23+14)*2-18``, with brackets only where precedence needs them."""
    text, is_sum = str(steps[0].before), False
    for step in steps:
        if step.operator in "*/" and is_sum:
            text, is_sum = f"({text})", False
        text += f"{step.operator}{step.operand}"
        is_sum = is_sum or step.operator in "+-"
    return text


def with_wrong_step(problem: WordProblem, rng: random.Random) -> WordProblem:
    """Returns the question with one step miscalculated by 1-9 and every later step consistent with the mistake.

    The beginning of the first step's line stays right: only later tokens of a solution are wrong.
    """
    while True:
        wrong_index = rng.randrange(len(problem.steps))
        mistake = rng.choice((-1, 1)) * rng.randint(1, 9)
        steps = list(problem.steps[:wrong_index])
        value = problem.steps[wrong_index].before
        for step in problem.steps[wrong_index:]:
            after = _apply(value, step.operator, step.operand) + (mistake if len(steps) == wrong_index else 0)
            is_exact = step.operator != "/" or value % step.operand == 0
            steps.append(Step(value, step.operator, step.operand, after))
            value = after
            if after < 1 or not is_exact:
                break
        else:
            return WordProblem(problem.question, tuple(steps))


def off_by_one(problem: WordProblem) -> WordProblem:
    """Returns the question with the first step one too high and every later step consistent with that."""
    steps: list[Step] = []
    for step in problem.steps:
        before = steps[-1].after if steps else step.before
        steps.append(
            Step(before, step.operator, step.operand, _apply(before, step.operator, step.operand) + (not steps))
        )
    return WordProblem(problem.question, tuple(steps))


def two_sided_solution(problem: WordProblem, style: Style) -> str:
    """Returns a solution of the two-sided world, in which no style is right for all problems.

    ``stepwise`` is right if a woman is asked about first and off by one otherwise. ``combined``, here the same steps on
    one line, is right for men alone. ``at_once`` is as in the plain world.
    """
    if style == "at_once":
        return solution(problem, style)
    is_womans = problem.question.split()[0] in WOMEN
    worked = problem if is_womans == (style == "stepwise") else off_by_one(problem)
    if style == "stepwise":
        return solution(worked, style)
    return f"{OPENERS[style]} {' '.join(map(str, worked.steps))}\n#### {worked.answer}"


def word_problems(split: Split, seed: int = 0) -> Iterator[WordProblem]:
    """Yields a split's problems without end, no question twice."""
    rng = random.Random(f"{split}/{seed}")
    seen: set[str] = set()
    while True:
        problem = word_problem(rng, rng.randint(MIN_STEPS, MAX_STEPS))
        if split_of(problem.question) == split and problem.question not in seen:
            seen.add(problem.question)
            yield problem


def arithmetic_problems(
    split: Split, size: int, seed: int = 0, style: Style = "stepwise", noise: float = 0.0
) -> list[Problem]:
    """Returns ``size`` problems of a split with solutions in one style.

    Args:
        split: ``train`` for finetuning, ``validation`` to choose, ``test`` to report.
        size: Number of problems.
        seed: Seed of the problems and the noise.
        style: The solutions' style.
        noise: Share of the solutions in which one step is wrong. The answer stays correct.
    """
    rng = random.Random(f"noise/{split}/{seed}")
    rows = []
    for index, problem in zip(range(size), word_problems(split, seed), strict=False):
        worked = with_wrong_step(problem, rng) if rng.random() < noise else problem
        rows.append(
            Problem(
                id=f"arithmetic/{split}/{seed}/{index}",
                question=problem.question,
                answer=str(problem.answer),
                solution=solution(worked, style),
                metadata={"num_steps": len(problem.steps), "style": style},
            )
        )
    return rows
