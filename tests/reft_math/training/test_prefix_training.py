"""What the main command says of the norm that it ended at."""

from __future__ import annotations

import pytest
import torch

from reft_math.training.prefix_training import norm_lines


@pytest.mark.parametrize(
    ("achieved", "controller", "dtype", "said"),
    [
        (0.54, "pid", torch.float32, ["0.5400, target 0.54, held by pid"]),
        (0.54, "pid", torch.bfloat16, ["held by pid", "of it 0.5000 acts after rounding to bfloat16"]),
        (0.52, "pid", torch.float32, ["0.5200", "training ended before the norm reached its target"]),
        (0.52, "none", torch.float32, ["0.5200, target 0.54, not held"]),
        (0.52, "projection", torch.float32, ["0.5200, target 0.54, held by projection"]),
    ],
)
def test_each_line_is_said_where_it_says_something(
    achieved: float, controller: str, dtype: torch.dtype, said: list[str]
) -> None:
    norm = {
        "achieved": achieved,
        "target": 0.54,
        "target_per_coordinate": 0.03,
        "acting_norm": 0.5,
        "rounded_away": 0.1,
        "trace": {"norm": [0.1, achieved]},
    }
    lines = norm_lines(norm, controller, dtype)
    assert len(lines) == len(said)
    assert all(part in line for part, line in zip(said, lines, strict=True))
