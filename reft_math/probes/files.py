"""Probes of one place as a safetensors file: ``number.identity.weight``, ``….intercept``, ``….penalty`` and so on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from reft_math.files import written
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
    with written(path) as aside:
        save_file(tensors, aside)


def load_probes(path: Path) -> Probes:
    """What `save_probes` wrote."""
    tensors = load_file(path)
    names = dict.fromkeys(tuple(name.split(".")[:2]) for name in tensors)
    return {
        (role, target): Probe(
            weight=tensors[f"{role}.{target}.weight"],
            intercept=float(tensors[f"{role}.{target}.intercept"]),
            penalty=float(tensors[f"{role}.{target}.penalty"]),
        )
        for role, target in names
    }
