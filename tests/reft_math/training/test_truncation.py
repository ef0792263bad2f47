"""METHOD's equality: a truncated batch has the loss and gradients of the full-length one with labels masked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from interventions import PrefixReftConfig, get_prefix_reft_model
from interventions.positions import intervention_mask
from reft_math.data.prefix import PrefixCollator
from reft_math.training.loss import sequence_cross_entropy
from reft_math.training.packing import logits_at

K = 3
ROWS = [([5, 6, 7, 8], [11, 12, 13, 14, 15, 16]), ([9, 10], [21, 22, 23, 24, 2]), ([30], [33, 2])]


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
@pytest.mark.parametrize(("intervention", "site"), [("red", "ffn_up"), ("bias", "block"), ("loreft", "block")])
@pytest.mark.parametrize("positions", ["all", "solution", "generated", "prompt"])
@pytest.mark.parametrize("pack", [True, False])
def test_truncated_batch_equals_the_full_length_batch_with_masked_labels(
    tiny_model: Callable[..., PreTrainedModel], family: str, intervention: str, site: str, positions: str, pack: bool
) -> None:
    config = PrefixReftConfig(intervention=intervention, site=site, positions=positions)  # type: ignore[arg-type]
    model = get_prefix_reft_model(tiny_model(family).double(), config)
    model.interventions.double()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)

    batch = PrefixCollator(0, positions, pack)([{"prompt_ids": x, "target_ids": y[:K]} for x, y in ROWS])  # type: ignore[arg-type]
    targets = batch.pop("targets")
    assert batch["input_ids"].shape == (2 if pack else 3, 4 + K - 1)
    with logits_at(model, batch.pop("logits_at")):
        truncated = sequence_cross_entropy(model(**batch, use_cache=False).logits, targets).mean()
    gradients = torch.autograd.grad(truncated, list(model.parameters()))

    losses = []
    for x, y in ROWS:  # the whole sequence, unpadded; targets after the K-th left out
        tokens = torch.tensor([x + y])
        mask = intervention_mask((torch.arange(tokens.shape[1]) - len(x))[None], positions)  # type: ignore[arg-type]
        log_p = model(tokens, intervention_mask=mask).logits[0].log_softmax(dim=-1)
        kept = range(min(K, len(y)))
        losses.append(-sum(log_p[len(x) + t - 1, y[t]] for t in kept) / len(kept))
    full = torch.stack(losses).mean()

    assert truncated.item() == pytest.approx(full.item(), abs=1e-10)
    for got, expected in zip(gradients, torch.autograd.grad(full, list(model.parameters())), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
