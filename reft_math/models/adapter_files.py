"""Adapter files: ``reft_model.safetensors`` and ``reft_config.json``."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save as to_bytes
from safetensors.torch import save_file
from torch import nn

from interventions.subspace import OPTIONS
from reft_math.errors import UserError
from reft_math.files.atomic import atomic_path
from reft_math.files.tensors import check_finite, read_parameters
from reft_math.models.config import ADAPTER_CONFIG, PrefixReftConfig
from reft_math.models.hub import fetch

WEIGHTS_NAME = "reft_model.safetensors"


def save(folder: str | Path, config: PrefixReftConfig, interventions: nn.ModuleDict) -> None:
    """Writes configuration and parameters, and creates the folder if it is missing.

    Raises:
        UserError: A parameter is NaN or infinite; nothing is written.
    """
    tensors, path = _tensors(interventions), Path(folder) / WEIGHTS_NAME
    check_finite(tensors, path)
    config.save_pretrained(folder)
    with atomic_path(path) as aside:
        save_file(tensors, aside, metadata={"format": "pt"})


def weights_sha256(interventions: nn.ModuleDict) -> str:
    """Returns the SHA-256 of the parameters."""
    return hashlib.sha256(to_bytes(_tensors(interventions))).hexdigest()


def _tensors(interventions: nn.ModuleDict) -> dict[str, torch.Tensor]:
    return {
        name: tensor.detach().contiguous().cpu()
        for name, tensor in interventions.state_dict().items()
        if not name.endswith(f".{OPTIONS}")  # they are in the configuration
    }


def count_parameters(source: str | Path) -> int:
    """Returns the number of parameters of a saved adapter, by folder or hub id.

    Raises:
        UserError: There is no adapter.
    """
    return sum(tensor.numel() for tensor in load_tensors(fetch(source, ADAPTER_CONFIG)).values())


def load_weights(folder: str | Path, interventions: nn.ModuleDict) -> None:
    """Reads parameters into interventions of the same layers and shapes.

    Raises:
        UserError: As in `load_tensors`, or names or shapes differ from the interventions'.
    """
    tensors = load_tensors(folder)
    try:
        interventions.load_state_dict(tensors)
    except RuntimeError as error:
        raise _misfit(folder, error) from None


def load_tensors(folder: str | Path) -> dict[str, torch.Tensor]:
    """Returns the parameters in a folder, by name.

    Raises:
        UserError: The file is missing or damaged, or holds anything but finite numbers.
    """
    try:
        return read_parameters(Path(folder) / WEIGHTS_NAME)
    except (OSError, ValueError) as error:
        raise _misfit(folder, error) from None


def _misfit(folder: str | Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"{Path(folder) / WEIGHTS_NAME} does not hold this adapter's parameters: {reason}")
