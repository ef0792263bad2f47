"""``--dry-run``: its counts are the run's, its estimate of memory is what autograd keeps, and it writes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from interventions import dry_run as shown
from interventions.prefix_training import PrefixJob, prepare
from reft_math.data.prefix import PrefixCollator
from reft_math.models import load_model
from reft_math.training import dry_run
from reft_math.training.dry_run import Tokens, Trained, memory_parts
from reft_math.training.loss import sequence_cross_entropy
from reft_math.training.memory import Batch, kept_by_linears
from reft_math.training.prefix_options import PrefixReftOptions

SMALL = "--train-size 24 --eval-size 4 --epochs 2 --calibration-size 2 --max-new-tokens 4"


def kept_bytes(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> int:
    """What autograd keeps of a forward pass with its loss, beside parameters, each storage once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    base = getattr(model, "model", model)
    own |= {parameter.untyped_storage().data_ptr() for parameter in base.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)  # held, so that its address stays its own
        return tensor

    targets = batch["targets"]
    inputs = {name: value for name, value in batch.items() if name != "targets"}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model(**inputs, logits_to_keep=targets.shape[1], use_cache=False)
        sequence_cross_entropy(outputs.logits, targets).mean()
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["red", "loreft", "lora", "bfloat16"])
def test_activations_are_estimated_within_a_quarter(kind: str, checkpointing: bool) -> None:
    """Against a count on the embedded model; the log-probabilities are the estimate's logits in float32."""
    dtype = "bfloat16" if kind == "bfloat16" else "auto"
    intervention = "loreft" if kind == "loreft" else "red"
    options = PrefixReftOptions(
        train_size=16, intervention=intervention, dtype=dtype, gradient_checkpointing=checkpointing
    )
    prefix = prepare(options)
    model: Any = prefix.model
    trained = shown._interventions(prefix.model)
    if kind == "lora":
        base = prefix.model.unload()
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear"))
        trained = Trained(base, model, 4, kept_by_linears(model, base.dtype))
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch = PrefixCollator(0, None if kind == "lora" else "all")(prefix.dataset.rows)
    rows, length = batch["input_ids"].shape
    estimate = memory_parts(prefix.options, trained, Batch(rows, length, 10))["activations"]
    assert estimate + 4 * rows * 10 * 86 == pytest.approx(kept_bytes(model, batch), rel=0.25)
