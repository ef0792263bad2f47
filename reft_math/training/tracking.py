"""Measures how well a controller held a norm."""

from __future__ import annotations

import math
from collections.abc import Sequence


def tracking(norms: Sequence[float], target: float, tolerance: float = 0.02) -> dict[str, float | None]:
    """Measures how a run's norms follow the target, by ``r_t = n_t/n* − 1`` at steps t = 1, 2, …

    Returns:
        ``tracking_error``, mean |r|, and ``overshoot``, the largest r, both from the first step with
        ``r_t ≥ −tolerance`` on; ``settling_step``, the first step from which ``|r| ≤ tolerance`` always holds, and
        ``steady_state_error``, mean r from that step on. None if there is no such step.
    """
    errors = [norm / target - 1 for norm in norms]
    reached = next((step for step, error in enumerate(errors) if error >= -tolerance), len(errors))
    settled = max((step for step, error in enumerate(errors, start=1) if abs(error) > tolerance), default=0)
    after, steady = errors[reached:], errors[settled:]
    return {
        "tracking_error": math.fsum(map(abs, after)) / len(after) if after else None,
        "overshoot": max(after, default=None),
        "settling_step": settled + 1 if steady else None,
        "steady_state_error": math.fsum(steady) / len(steady) if steady else None,
    }
