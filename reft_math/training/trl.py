"""An adapter as TRL's trainers take it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import nn

from interventions.positions import intervention_mask
from reft_math.data.prefix import IGNORE_INDEX
from reft_math.errors import UserError
from reft_math.models.adapter import PrefixReftModel
from reft_math.models.adapter_files import WEIGHTS_NAME


class TrlModel(PeftModel):  # type: ignore[misc]
    """A `PrefixReftModel` in the place of a `peft.PeftModel`.

    TRL puts its own output layer on the base, saves adapters alone and takes the base as reference of a KL only where
    the model is a `PeftModel`. Its trainers then see the base (its ``config``, ``generation_config``, …), and here run
    and save the adapter.

    `forward` tells prompt and generated tokens apart by ``labels``: those with one are generated. `generate` runs the
    interventions to the end, whatever the adapter's gate: rollouts come from the model whose gradient is taken.

    Args:
        reft_model: The adapter, trained in place.
    """

    def __init__(self, reft_model: PrefixReftModel) -> None:
        nn.Module.__init__(self)
        self.base_model = reft_model  # in peft's words: the base with the adapter in it; its `model` is the base alone
        self.active_adapter = "default"
        self._is_off = False

    def __getattr__(self, name: str) -> Any:
        try:
            return nn.Module.__getattr__(self, name)
        except AttributeError:
            if name == "base_model":
                raise
            return getattr(self.base_model.model, name)

    @property
    def peft_config(self) -> dict[str, PeftConfig]:
        return {"default": PeftConfig()}

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, **kwargs}
        if self._is_off:
            return self.base_model.model(**inputs)
        if labels is not None and self.base_model.positions != "all":
            inputs["intervention_mask"] = intervention_mask(_place(labels), self.base_model.positions)
        return self.base_model(**inputs)

    def generate(self, inputs: torch.Tensor | None = None, **kwargs: Any) -> Any:
        return self.base_model.generate(inputs, gate="off" if self._is_off else "always", **kwargs)

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        raise UserError("use_transformers_continuous_batching draws without the interventions; leave it out")

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        raise UserError("use_vllm draws without the interventions; leave it out")

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Runs the base alone."""
        before, self._is_off = self._is_off, True
        try:
            yield
        finally:
            self._is_off = before

    def add_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing. GRPO asks for a copy of the adapter as reference; without one it takes the base."""

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        self.base_model.activation_checkpointing_enable(*args, **kwargs)

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        self.base_model.gradient_checkpointing_enable(*args, **kwargs)

    def save_pretrained(self, folder: str | Path, is_main_process: bool = True, **_: Any) -> None:
        """Saves the adapter, and its parameters once more under the name that trainers look for to resume."""
        if is_main_process:
            self.base_model.save_pretrained(folder)
            shutil.copyfile(Path(folder) / WEIGHTS_NAME, Path(folder) / SAFETENSORS_WEIGHTS_NAME)

    def load_adapter(self, folder: str | Path, *args: Any, **kwargs: Any) -> None:
        """Reads the parameters of a checkpoint."""
        self.base_model.load_weights(folder)


def _place(labels: torch.Tensor) -> torch.Tensor:
    """Returns places (`interventions.positions`) by labels: 0 with one, −1 before the first of some, else −2."""
    is_generated = labels != IGNORE_INDEX
    before = torch.cat([is_generated[:, 1:], torch.zeros_like(is_generated[:, :1])], dim=1)
    return torch.where(is_generated, 0, torch.where(before, -1, -2))
