"""Computes tokens and time per answer: means over problems, their intervals, and table cells."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reft_math.scoring.statistics import mean_interval

LENGTH_TITLE = "length and time, mean (95 % interval)"


def tokens_interval(records: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """Returns the 95 % interval of ``mean(n)``, n the number of tokens drawn, bootstrapped over problems.

    Args:
        records: Records with ``num_tokens``, and ``problem`` if a problem has several.
    """
    return _pair(mean_interval(_tokens(records)))


def tokens_difference(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns ``mean(n_second − n_first)`` and its 95 % interval, bootstrapped over problems.

    Args:
        first, second: Records as in `tokens_interval`, for the same problems in the same order.
    """
    differences = np.subtract(_tokens(second), _tokens(first))
    return {"difference": float(differences.mean()), "interval_95": _pair(mean_interval(differences))}


def tokens_cell(mean: float, interval: Sequence[float] | None, sign: str = "") -> str:
    """Returns text such as ``281 (270 to 292)``, without an interval if all are equal."""
    digits = 0 if abs(mean) >= 100 else 1
    numbers = [f"{round(value, digits) + 0.0:{sign}.{digits}f}" for value in (mean, *(interval or ()))]
    return "{} ({} to {})".format(*numbers) if interval else numbers[0]


def difference_cell(test: Mapping[str, Any] | None) -> str:
    """Returns text such as ``-77.0 (-92.1 to -63.4)``."""
    return "-" if test is None else tokens_cell(test["difference"], test["interval_95"], "+")


def time_cell(seconds: float | None) -> str:
    """Returns text such as ``12 ms`` or ``3.4 s``."""
    if seconds is None:
        return "-"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def _tokens(records: Sequence[Mapping[str, Any]]) -> list[float]:
    """Returns mean tokens by problem, since intervals are over problems."""
    by_problem: dict[str, list[int]] = defaultdict(list)
    for place, record in enumerate(records):
        by_problem[record.get("problem", str(place))].append(record["num_tokens"])
    return [sum(tokens) / len(tokens) for tokens in by_problem.values()]


def _pair(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)
