"""Scores several samples per problem: pass@k and the majority vote."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from math import comb

from reft_math.scoring.numeric import number_alone, unwrapped

_UNIT = re.compile(r"(?<=[0-9])(?:\\[,;:! ]|[ ~])*(?:\\(?:text|mathrm)\{[^{}]*\}(?:\^\{?[23]\}?)?|\^\{?\\circ\}?|°)\Z")
_SIZES = re.compile(r"\\(?:left|right|displaystyle)(?![A-Za-z])|(?<=\\)[dtc](?=frac)")
_NAME = re.compile(r"\A[A-Za-z](?:=|\\in(?![A-Za-z]))")
_CHOICE = re.compile(r"\(?([A-Z])[).]?")
_FRACTION = re.compile(r"\\frac(\{[0-9]{1,9}\}|[0-9])(\{[0-9]{1,9}\}|[0-9])")
_RATIO = re.compile(r"(-?)\{?([0-9]{1,9})\}?/\{?([1-9][0-9]{0,8})\}?")
_LONGEST = 100  # digits


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Returns ``pass@k = 1 − C(n−c, k) / C(n, k)``, the unbiased estimate that one of k samples is right.

    Args:
        num_samples: n, the number of samples drawn.
        num_correct: c, the number of right ones.
        k: Number of tries, at most n.

    Raises:
        ValueError: If the counts are impossible.

    Source: Chen et al., Evaluating Large Language Models Trained on Code (2021), equation 1.
    """
    if not 0 <= num_correct <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(
            f"pass@k needs 0 <= correct <= samples and 1 <= k <= samples, got {num_correct=}, {num_samples=}, {k=}"
        )
    return float(1 - Fraction(comb(num_samples - num_correct, k), comb(num_samples, k)))


def majority_vote(answers: Sequence[str | None], is_correct: Sequence[bool]) -> float:
    """Returns the probability that the most frequent answer is right, with ties broken at random.

    Answers are the same if `same_vote` gives the same; a sample without an answer has no vote. Without any vote the
    result is 0.

    Args:
        answers: Each sample's answer.
        is_correct: Whether each answer is right.
    """
    cast = [(same_vote(answer), right) for answer, right in zip(answers, is_correct, strict=True) if answer is not None]
    if not cast:
        return 0.0
    votes = Counter(vote for vote, _ in cast)
    most = max(votes.values())
    right = {vote for vote, correct in cast if correct}
    winners = [vote for vote, count in votes.items() if count == most]
    return sum(vote in right for vote in winners) / len(winners)


def same_vote(answer: str) -> Fraction | str:
    r"""Returns the key under which answers are counted as equal: a number's value, or the text without formatting.

    ``18``, ``18.0``, ``\$18`` and ``x = 18\text{ m}`` are one vote, ``\frac{1}{2}``, ``1/2`` and ``0.5`` another, and
    so are ``C`` and ``\text{(C)}``. That ``2\sqrt{3}`` equals ``\sqrt{12}`` needs math-verify and is not detected,
    whether they are right or wrong.

    Args:
        answer: An answer alone, as extracted by a scorer.
    """
    text = _NAME.sub("", _SIZES.sub("", re.sub(r"[\s$]", "", unwrapped(_UNIT.sub("", answer)))))
    if choice := _CHOICE.fullmatch(text):
        return choice[1]
    if ratio := _RATIO.fullmatch(_FRACTION.sub(r"\1/\2", text)):
        return Fraction("{}{}/{}".format(*ratio.groups()))
    number = number_alone(text)
    if number is not None and len(number) <= _LONGEST:
        return Fraction(number)
    return re.sub(r"\{(\w)\}", r"\1", text.rstrip("."))
