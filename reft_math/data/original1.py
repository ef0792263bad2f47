"""Makes Original #1, a synthetic set: a line with two waves on it (Vacareanu et al. 2024, arXiv:2404.07544).

``x ~ U(0, 100)`` rounded to 2 places, ``y = x + 10 sin(5πx/100) + 10 cos(6πx/100)`` from the rounded x, and the target
is ``9·(y − LOWEST)/(HIGHEST − LOWEST)``.

Over the 10,001 possible x the curve goes from 10 (at 0) to 110.4373904953285 (at 98.50): these bounds, not those of
a sample, set the target's scale, so that it is the same in every split and exactly [0, 9].
"""

from __future__ import annotations

import math
import random

from reft_math.data.rows import Prompt, Split

NAME = "original1"
SIZES: dict[Split, int] = {"train": 10_000, "validation": 1_000, "test": 1_000}  # those of the RAFT paper

PROMPTS: dict[Prompt, str] = {
    "ours": "Estimate the output score, from 0 to 9, that belongs to this input score. "
    "Answer with the number alone.\nInput score: {x:.2f}",
    "paper": "The task is to provide your best estimate for 'output score' based on 'input score'. Please provide that "
    "and only that, without any additional text. Input score: {x:.2f}. Output score:",
}


def curve(x: float) -> float:
    """Returns ``x + 10 sin(5πx/100) + 10 cos(6πx/100)``."""
    return x + 10 * math.sin(5 * math.pi * x / 100) + 10 * math.cos(6 * math.pi * x / 100)


LOWEST, HIGHEST = curve(0), curve(98.5)


def example(x: float, prompt: Prompt = "ours") -> tuple[str, float]:
    """Returns the text for an x of 2 places, and its target in [0, 9], not rounded."""
    return PROMPTS[prompt].format(x=x), 9 * (curve(x) - LOWEST) / (HIGHEST - LOWEST)


def inputs(split: Split, seed: int) -> list[float]:
    """Returns the x of a split; no x is in two splits.

    Test and validation hold 1,000 different x each, whatever the seed. Train's are independent draws, by the seed,
    from the rest: 10,000 draws from 8,001 values, so some repeat. 100.00 is left to train: as a text it is unlike any
    other x, and one row that models get wrong by the whole range would be most of a test's error.
    """
    held_out = random.Random("original1/held out").sample(range(10_000), SIZES["test"] + SIZES["validation"])
    if split == "test":
        return [hundredths / 100 for hundredths in held_out[: SIZES["test"]]]
    if split == "validation":
        return [hundredths / 100 for hundredths in held_out[SIZES["test"] :]]
    return _draws(SIZES["train"], set(held_out), random.Random(f"original1/train/{seed}"))


def _draws(size: int, held_out: set[int], rng: random.Random) -> list[float]:
    """Returns ``size`` draws of U(0, 100), rounded to hundredths, that are not held out."""
    drawn: list[float] = []
    while len(drawn) < size:
        hundredths = round(rng.uniform(0, 10_000))
        if hundredths not in held_out:
            drawn.append(hundredths / 100)
    return drawn
