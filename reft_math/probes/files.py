"""Probes of one place in a safetensors file: ``number.identity.weight``, ``….intercept``, ``….penalty`` and so on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from reft_math.errors import UserError
from reft_math.files.atomic import atomic_path
from reft_math.files.tensors import read_parameters
from reft_math.probes.number import Probe

Probes = dict[tuple[str, str], Probe]


def save_probes(path: Path, probes: Mapping[tuple[str, str], Probe]) -> None:
    """Writes probes by role and target, whole or not at all."""
    tensors = {
        f"{role}.{target}.{name}": np.asarray(value, dtype=np.float64)
        for (role, target), probe in probes.items()
        for name, value in vars(probe).items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as aside:
        save_file(tensors, aside)


def load_probes(path: Path) -> Probes:
    """Reads a file written by `save_probes`.

    Raises:
        UserError: The file holds something else.
    """
    try:
        tensors = {name: tensor.numpy() for name, tensor in read_parameters(path).items()}
        names = dict.fromkeys(tuple(name.split(".")[:2]) for name in tensors)
        return {
            (role, target): Probe(
                weight=tensors[f"{role}.{target}.weight"],
                intercept=float(tensors[f"{role}.{target}.intercept"]),
                penalty=float(tensors[f"{role}.{target}.penalty"]),
            )
            for role, target in names
        }
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} does not hold this run's probes ({error!r}); start anew with --overwrite") from None


def rounded(rows: list[list[float]]) -> list[list[float]]:
    """Keeps six digits for records: float32 has no more."""
    return [[float(f"{value:.6g}") for value in row] for row in rows]
