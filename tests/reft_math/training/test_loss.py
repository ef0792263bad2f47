from __future__ import annotations

import torch

from reft_math.data.prefix import IGNORE_INDEX
from reft_math.training.loss import sequence_cross_entropy


def test_is_the_mean_over_each_rows_own_targets() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 7, dtype=torch.float64)
    targets = torch.tensor([[1, 2, 3, 4], [IGNORE_INDEX, IGNORE_INDEX, 5, 6], [IGNORE_INDEX] * 4])
    log_p = logits.log_softmax(dim=-1)
    first = -(log_p[0, 0, 1] + log_p[0, 1, 2] + log_p[0, 2, 3] + log_p[0, 3, 4]) / 4
    second = -(log_p[1, 2, 5] + log_p[1, 3, 6]) / 2
    expected = torch.stack([first, second, torch.zeros((), dtype=torch.float64)])
    torch.testing.assert_close(
        sequence_cross_entropy(logits[targets != IGNORE_INDEX], targets), expected, rtol=0, atol=1e-12
    )


def test_is_computed_in_float32_from_bfloat16_logits() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 50).bfloat16(), torch.tensor([[1, 2, 3], [4, 5, 6]])
    loss = sequence_cross_entropy(logits, targets)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, sequence_cross_entropy(logits.float(), targets))
