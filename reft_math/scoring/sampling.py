"""What several samples a problem say: pass@k and the majority's vote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from math import comb


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """``pass@k = 1 − C(n−c, k) / C(n, k)``, the unbiased estimate that one of k samples is right.

    Args:
        num_samples: n, the samples drawn.
        num_correct: c, those that are right.
        k: At most n.

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
    """Probability that the most frequent answer is right, one of equally frequent ones being drawn at random.

    Answers are the same where their texts are; a sample without an answer has no vote. Without any vote, 0.

    Args:
        answers: Each sample's answer.
        is_correct: Whether it is right.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    right = {answer for answer, correct in zip(answers, is_correct, strict=True) if correct}
    winners = [answer for answer, count in votes.items() if count == most]
    return sum(answer in right for answer in winners) / len(winners)
