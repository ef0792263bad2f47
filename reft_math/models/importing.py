"""Converts adapters of other projects into adapters of this one.

The files lack ``act_fn`` and BREP's gate, which must be given: no default would be safe. Everything that the files hold
is either used or refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from interventions.bias import BiasIntervention
from interventions.gates import TokenGate, parse_gate
from interventions.positions import Positions
from interventions.red import RedIntervention
from interventions.sites import num_layers
from interventions.subspace import SubspaceIntervention
from reft_math.commands.options.training import ELEMENTWISE
from reft_math.errors import UserError
from reft_math.models.adapter import PrefixReftModel, get_prefix_reft_model
from reft_math.models.config import PrefixReftConfig
from reft_math.models.foreign import Foreign, Found, Tensors, pyreft_config, read_brep, read_pyreft, shape_of
from reft_math.models.train_config import read_train_config

BREP_NAME = "delta_vector.pth"
# pyreft's columns are orthonormal up to float32's rounding; ours are orthonormalised again.
_ORTHONORMAL = 1e-4


@dataclass(frozen=True)
class Checkpoint:
    """An adapter read from another project's files.

    Attributes:
        config: Configuration of the new adapter.
        layers: Per layer ``scale, bias: (width,)`` for RED, ``bias`` for a bias; for the others ``weight: (rank,
            width)``, ``bias: (rank,)`` and ``rotation: (width, rank)``, whose columns are orthonormal.
        notes: Other information in the files, one line each.
    """

    config: PrefixReftConfig
    layers: dict[int, Tensors]
    notes: tuple[str, ...] = ()

    def put_on(self, model: PreTrainedModel) -> PrefixReftModel:
        """Puts the interventions on the base, with float32 parameters. Warns if they seem to be from a shallower base.

        Raises:
            UserError: The adapter does not fit the model, or R is not orthonormal.
        """
        reft_model = get_prefix_reft_model(model, self.config)
        for layer, intervention in reft_model.by_layer():
            _fill(intervention, self.layers[layer], layer)
        found, depth = len(self.layers), num_layers(model)
        if 1 < found < depth and set(self.layers) == set(range(found)):
            warnings.warn(
                f"the adapter is one for all layers of a base with {found}, and this one has {depth}: is it the base"
                " that it was trained on?",
                stacklevel=2,
            )
        reft_model.interventions.eval()
        return reft_model


def import_checkpoint(path: str | Path, model: PreTrainedModel, **unsaid: Any) -> PrefixReftModel:
    """Reads a checkpoint with `read_checkpoint` and puts it on the base that it was trained on."""
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
    """Reads another project's adapter without importing or running anything in it.

    Args:
        path: A folder saved by pyreft or a fork of it, or BREP's ``delta_vector.pth`` or the folder that holds it.
        act_fn: Activation of LoReFT and DiReFT, ``linear`` for ``σ(x) = x``; required if the files do not give it.
        gate: Default gate; ``prompt`` if not given for pyreft, required for BREP.
        template: Prompt template; by default the nearest to the one in a ``train_config.json`` beside BREP's file.
        dropout, positions, base_model, base_revision, versions: As in `PrefixReftConfig`.

    Raises:
        UserError: The files are of another kind, damaged or hold something unusable, or an argument is missing.
    """
    path = Path(path)
    brep = path / BREP_NAME if path.is_dir() else path
    if (theirs := pyreft_config(path)) is not None:
        foreign, said, default = read_pyreft(theirs), None, "prompt"  # pyreft's usual decoding
        act_fn = _act_fn(foreign, act_fn)
    elif brep.is_file():
        foreign, said, default = read_brep(brep), read_train_config(brep.parent), None
    else:
        raise UserError(
            f"an adapter to import is a folder saved by pyreft or BREP's {BREP_NAME}; {path} is neither{_meant(path)}"
        )
    site, width, rank = _in_common(foreign.found, path)
    layers = {layer: tensors for layer, _, tensors in foreign.found}
    if said is not None:
        base_model, template = base_model or said.base_here, template or said.template
        said.compare(base_model, site)
    config = PrefixReftConfig(
        intervention=foreign.intervention,
        site=site,
        layers=tuple(layers),
        positions=positions,
        rank=rank,
        width=width,
        gate=_gate(gate or default),
        base_model=base_model,
        base_revision=base_revision,
        template=template,
        versions=dict(versions or {}),
        act_fn=act_fn,
        dropout=dropout,
    )
    notes = [*foreign.notes, *([] if said is None else [said.note])]
    if default is None and isinstance(parse_gate(config.gate), TokenGate):
        notes.append("BREP goes on from the cache that the prefix has changed: evaluate with --handoff keep")
    return Checkpoint(config, layers, tuple(notes))


def _gate(gate: str | None) -> str:
    if gate is None:
        raise UserError(
            "BREP's file does not hold its number of prefix tokens, so the gate has to be said: tokens:N+1 for"
            " n_prefix = N, always for -1, off for 0 (the base)"
        )
    return gate


def _act_fn(foreign: Foreign, told: str | None) -> str | None:
    """Returns the given activation or the files'; refuses a contradiction, or both missing."""
    if told and foreign.act_fn and told != foreign.act_fn:
        raise UserError(f"act_fn must be the one of training, {foreign.act_fn} by the adapter's files; got {told}")
    if foreign.intervention not in ELEMENTWISE and not (told or foreign.act_fn):
        raise UserError(
            "pyreft's files do not hold act_fn, so it has to be said: linear if there was none, or an activation such"
            " as relu"
        )
    return told or foreign.act_fn


def _meant(path: Path) -> str:
    """Suggests the subfolder that was meant: pyreft's trainer saves into one within each checkpoint."""
    inside = next((file.parent for file in sorted(path.glob("*/config.json"))), None)
    return f"; did you mean {inside}?" if inside else ""


@torch.no_grad()
def _fill(
    intervention: RedIntervention | BiasIntervention | SubspaceIntervention, tensors: Tensors, layer: int
) -> None:
    if not isinstance(intervention, SubspaceIntervention):
        for name, parameter in intervention.named_parameters():
            parameter.copy_(tensors[name])
        return
    intervention.learned_source.weight.copy_(tensors["weight"])
    intervention.learned_source.bias.copy_(tensors["bias"])
    rotation = tensors["rotation"]
    intervention.rotate_layer.weight = rotation.to(intervention.bias.device)
    if not torch.allclose(intervention.rotate_layer.weight.cpu(), rotation, rtol=0, atol=_ORTHONORMAL):
        raise UserError(f"R must be orthonormal to {_ORTHONORMAL:g}; that of layer {layer} is not")


def _in_common(found: Sequence[Found], path: Path) -> tuple[str, int, int | None]:
    """Returns site, width and rank; rank is None for elementwise interventions."""
    sites, layers = {site for _, site, _ in found}, {layer for layer, _, _ in found}
    if len(sites) != 1 or len(layers) < len(found):
        raise UserError(
            f"an adapter has one site, and one intervention a layer; {path} has {len(found)} of them in"
            f" {len(layers)} layers, at {', '.join(sorted(sites)) or 'none'}"
        )
    sizes = {shape_of(tensors) for _, _, tensors in found}
    if len(sizes) != 1:
        raise UserError(f"an adapter's layers have one width and one rank; {path} has {sorted(sizes)}")
    *ranks, width = sizes.pop()
    rank = ranks[0] if ranks else None
    if rank is not None and not 0 < rank < width:
        raise UserError(f"an intervention's rank must be at least 1 and less than its width {width}; {path} has {rank}")
    return sites.pop(), width, rank
