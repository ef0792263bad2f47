"""An adapter's interventions without its base, for programs that run the base themselves."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from interventions.edit import Edit
from reft_math.errors import UserError
from reft_math.models.adapter import new_intervention
from reft_math.models.adapter_files import WEIGHTS_NAME, load_tensors
from reft_math.models.config import ADAPTER_CONFIG, PrefixReftConfig
from reft_math.models.hub import fetch

_PARAMETER = re.compile(r"layer_(\d+)_comp_[^#]*#0\.(.+)")  # as pyvene names them at sites that have a name


def read_adapter(source: str | Path, revision: str | None = None) -> tuple[PrefixReftConfig, dict[int, Edit]]:
    """Returns the configuration and the interventions by layer, from a folder or the hub.

    Raises:
        UserError: There is no adapter, its site is a path, or its parameters are not the configuration's.
    """
    folder = fetch(source, ADAPTER_CONFIG, revision)
    config = PrefixReftConfig.from_pretrained(folder)
    states: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in load_tensors(folder).items():
        found = _PARAMETER.fullmatch(name)
        if found is None:
            raise UserError(f"adapters at named sites can be read without their base; this one is at {config.site}")
        states.setdefault(int(found[1]), {})[found[2]] = tensor
    if config.width is None or set(states) != set(config.layers):
        raise UserError(f"{Path(folder) / WEIGHTS_NAME} does not hold the layers that {ADAPTER_CONFIG} names")
    interventions = {}
    for layer, state in sorted(states.items()):
        intervention = new_intervention(config, config.width).eval()
        try:
            intervention.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{Path(folder) / WEIGHTS_NAME} does not hold this adapter's parameters: {reason}"
            ) from None
        interventions[layer] = intervention
    return config, interventions
