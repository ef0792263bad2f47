"""Adapters of other projects, made into adapters of this one.

Of what these files do not hold, ``act_fn`` and BREP's gate have to be said: no guess at them is a good one. Everything
that they do hold is either used or refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from interventions.config import CONFIG_NAME, InterventionName, PrefixReftConfig
from interventions.foreign_files import Found, Tensors, read_brep, read_pyreft
from interventions.model import PrefixReftModel, get_prefix_reft_model
from interventions.red import RedIntervention
from interventions.subspace import SubspaceIntervention
from reft_math.data.positions import Positions
from reft_math.errors import UserError

BREP_NAME = "delta_vector.pth"
# pyreft's columns are orthonormal to float32's rounding; ours are made so anew.
_ORTHONORMAL = 1e-4


@dataclass(frozen=True)
class Checkpoint:
    """What was read.

    Attributes:
        config: Of the adapter that it becomes.
        layers: By layer ``scale, bias: (width,)`` for RED; for the others ``weight: (rank, width)``, ``bias: (rank,)``
            and ``rotation: (width, rank)``, whose columns are orthonormal.
    """

    config: PrefixReftConfig
    layers: dict[int, Tensors]

    def put_on(self, model: PreTrainedModel) -> PrefixReftModel:
        """The base with these interventions, parameters in float32.

        Raises:
            UserError: The model is not one that the adapter fits, or R is not orthonormal.
        """
        reft_model = get_prefix_reft_model(model, self.config)
        for layer, intervention in reft_model.by_layer():
            _fill(intervention, self.layers[layer], layer)
        reft_model.interventions.eval()
        return reft_model


def import_checkpoint(path: str | Path, model: PreTrainedModel, **unsaid: Any) -> PrefixReftModel:
    """`read_checkpoint`, put on the base that it was trained on."""
    return read_checkpoint(path, **unsaid).put_on(model)


def read_checkpoint(
    path: str | Path,
    *,
    act_fn: str | None = None,
    dropout: float = 0.0,
    positions: Positions = "all",
    gate: str | None = None,
    base_model: str | None = None,
    base_revision: str | None = None,
    template: str | None = None,
    versions: Mapping[str, str] | None = None,
) -> Checkpoint:
    """Reads another project's adapter, importing and running nothing that stands in it.

    Args:
        path: A folder saved by pyreft (LoReFT, DiReFT), or BREP's ``delta_vector.pth`` or the folder that holds it.
        act_fn: LoReFT's and DiReFT's, ``linear`` for ``σ(x) = x``; has to be said for them.
        gate: ``prompt`` by default for LoReFT and DiReFT; has to be said for BREP.
        dropout, positions, base_model, base_revision, template, versions: As in `PrefixReftConfig`.

    Raises:
        UserError: Not such files, damaged ones, anything in them that cannot be used, or something left unsaid.
    """
    path = Path(path)
    brep = path / BREP_NAME if path.is_dir() else path
    if (path / CONFIG_NAME).is_file():
        raise UserError(f"{path} is an adapter of this project already; pass it as --adapter, or to from_pretrained")
    if (path / "config.json").is_file():
        intervention, found = read_pyreft(path)
    elif brep.is_file():
        intervention, found = "red", read_brep(brep)
    else:
        raise UserError(f"an adapter to import is a folder saved by pyreft or BREP's {BREP_NAME}; {path} is neither")
    site, width, rank = _in_common(found, path)
    layers = {layer: tensors for layer, _, tensors in found}
    config = PrefixReftConfig(
        intervention=intervention,
        site=site,
        layers=tuple(layers),
        positions=positions,
        rank=rank,
        width=width,
        gate=_gate(intervention, act_fn, gate),
        base_model=base_model,
        base_revision=base_revision,
        template=template,
        versions=dict(versions or {}),
        act_fn=act_fn,
        dropout=dropout,
    )
    return Checkpoint(config, layers)


def _gate(intervention: InterventionName, act_fn: str | None, gate: str | None) -> str:
    """The default gate, once it is seen that what has to be said was."""
    if intervention == "red" and gate is None:
        raise UserError(
            "BREP's file does not hold its number of prefix tokens, so the gate has to be said: tokens:N+1 for"
            " n_prefix = N, always for -1"
        )
    if intervention != "red" and act_fn is None:
        raise UserError(
            "pyreft's files do not hold act_fn, so it has to be said: linear if there was none, or an activation such"
            " as relu"
        )
    return gate or "prompt"  # pyreft's usual decoding


@torch.no_grad()
def _fill(intervention: RedIntervention | SubspaceIntervention, tensors: Tensors, layer: int) -> None:
    if isinstance(intervention, RedIntervention):
        intervention.scale.copy_(tensors["scale"])
        intervention.bias.copy_(tensors["bias"])
        return
    intervention.learned_source.weight.copy_(tensors["weight"])
    intervention.learned_source.bias.copy_(tensors["bias"])
    rotation = tensors["rotation"]
    intervention.rotate_layer.weight = rotation.to(intervention.bias.device)
    if not torch.allclose(intervention.rotate_layer.weight.cpu(), rotation, rtol=0, atol=_ORTHONORMAL):
        raise UserError(f"R must be orthonormal to {_ORTHONORMAL:g}; that of layer {layer} is not")


def _in_common(found: Sequence[Found], path: Path) -> tuple[str, int, int | None]:
    """Site, width and rank, the last None for RED."""
    sites, layers = {site for _, site, _ in found}, {layer for layer, _, _ in found}
    if len(sites) != 1 or len(layers) < len(found):
        raise UserError(
            f"an adapter has one site, and one intervention a layer; {path} has {len(found)} of them in"
            f" {len(layers)} layers, at {', '.join(sorted(sites)) or 'none'}"
        )
    sizes = {tuple(tensors["weight" if "weight" in tensors else "scale"].shape) for _, _, tensors in found}
    if len(sizes) != 1:
        raise UserError(f"an adapter's layers have one width and one rank; {path} has {sorted(sizes)}")
    *ranks, width = sizes.pop()
    rank = ranks[0] if ranks else None
    if rank is not None and not 0 < rank < width:
        raise UserError(f"an intervention's rank must be at least 1 and less than its width {width}; {path} has {rank}")
    return sites.pop(), width, rank
