from __future__ import annotations

import pytest

from reft_math.training.tracking import tracking


@pytest.mark.parametrize(
    ("norms", "expected"),
    [
        # touches at 0.495, overshoots, leaves once more, settles at the sixth
        ([0.1, 0.495, 0.55, 0.5, 0.45, 0.505, 0.5, 0.495], ((0.5 + 5 + 0 + 5 + 0.5 + 0 + 0.5) / 7 / 50, 0.1, 6, 0.0)),
        ([0.2, 0.505, 0.503], (0.008, 0.01, 2, 0.008)),  # stays a little above
        ([0.5], (0.0, 0.0, 1, 0.0)),
        ([0.5, 0.6], (0.1, 0.2, None, None)),  # gone at the end
        ([0.1, 0.2], (None, None, None, None)),  # never there
        ([0.1, 0.489], (None, None, None, None)),  # 2.2 % are not there yet
        ([0.1, 0.491], (0.018, -0.018, 2, -0.018)),
    ],
)
def test_arrival_overshoot_settling_and_steady_state(
    norms: list[float], expected: tuple[float | None, float | None, int | None, float | None]
) -> None:
    found = tracking(norms, 0.5)
    assert list(found) == ["tracking_error", "overshoot", "settling_step", "steady_state_error"]
    for value, wanted in zip(found.values(), expected, strict=True):
        assert value == (wanted if wanted is None else pytest.approx(wanted, abs=1e-12))
