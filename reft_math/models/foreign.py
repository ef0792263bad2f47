"""Reads files of other projects: folders of pyreft and its forks, BREP's ``delta_vector.pth``.

The format is told from the contents. Nothing in the files is imported or run, and all contents are either used or
refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyvene as pv
import torch
from transformers import PretrainedConfig

from interventions.sites import SITES, site_at
from interventions.subspace import orthonormal
from reft_math.commands.options.training import ELEMENTWISE
from reft_math.errors import UserError
from reft_math.files.strict import read_object
from reft_math.models.config import ADAPTER_CONFIG, InterventionName

Tensors = dict[str, torch.Tensor]
Found = tuple[int, str, Tensors]  # layer, site, parameters

# pyvene would import any class named here; this reader imports nothing. Forks keep the names and their tensors.
_CLASSES: dict[str, InterventionName] = {
    "LoreftIntervention": "loreft",
    "DireftIntervention": "direft",
    "BiasIntervention": "bias",
    "RedIntervention": "red",
}
_KNOWN_MODULES = ("pyreft.interventions.", "interventions.")  # pyreft's own, and ours
_PYREFT_CONFIGS = ("config.json", ADAPTER_CONFIG)  # EasySteer may use the name of ours
# Keys that pyvene, transformers and EasySteer write. Sorted keys order several interventions at one place, which are
# refused; keys that transformers has for any model, or its Trainer sets, do not affect interventions.
_CONFIG_KEYS = {
    *("mode", "representations", "intervention_types", "intervention_dimensions", "intervention_constant_sources"),
    *("sorted_keys", "act_fn", "easysteer_training"),
    *(f"{token}_token_id" for token in ("bos", "eos", "pad", "sep", "decoder_start")),
    *("use_cache", "torch_dtype", "tie_word_embeddings"),
    *PretrainedConfig().to_dict(),
}
_PLACE_FIELDS = {"layer", "component", "unit", "max_number_of_units", "low_rank_dimension"}
_ABOUT = re.compile(r"\..*|(README|LICENSE)(\.md|\.txt)?")  # files about an adapter in hub downloads
# pyvene's names for outputs of a layer's submodules, and two modules whose output is that of their last linear.
_COMPONENTS = {
    "block_output": "",
    "mlp_output": "mlp",
    "attention_output": "self_attn",
    "query_output": "self_attn.q_proj",
    "key_output": "self_attn.k_proj",
    "value_output": "self_attn.v_proj",
}
_LAST_LINEAR = {"mlp": "mlp.down_proj", "self_attn": "self_attn.o_proj"}
_RAW_COMPONENT = re.compile(r"model\.layers\[([0-9]{1,6})\](?:\.(.+))?\.output")
_WIDTHS = ("embed_dim", "interchange_dim")  # pyvene's, beside an intervention's parameters
_ROTATION = "rotate_layer"
_ORIGINAL, _BASE = (f"{_ROTATION}.parametrizations.weight.{name}" for name in ("original", "0.base"))
_BREP_KEY = re.compile(r"model\.layers\.([0-9]{1,6})\.(?:(.+)\.)?delta_vector\.(activation_scaling|activation_bias)")
_SCALING, _BIAS = "activation_scaling", "activation_bias"


@dataclass(frozen=True)
class Foreign:
    """An adapter of another project.

    Attributes:
        intervention: Kind of intervention.
        found: Parameters by place.
        act_fn: Activation of LoReFT and DiReFT, if the files give it.
        notes: Other information in the files, one line each.
    """

    intervention: InterventionName
    found: list[Found]
    act_fn: str | None = None
    notes: tuple[str, ...] = ()


def shape_of(tensors: Tensors) -> tuple[int, ...]:
    """Returns ``(rank, width)``, or ``(width,)`` for an elementwise intervention."""
    return tuple(tensors["weight" if "weight" in tensors else "bias"].shape)


# --- pyreft ---------------------------------------------------------------------------------------------------------


def pyreft_config(folder: Path) -> Path | None:
    """Returns the file that says what acts where; None if there is no such file.

    Raises:
        UserError: The folder is an adapter of this project, which also has pyvene's files.
    """
    ours = folder / ADAPTER_CONFIG
    if not ours.is_file():
        return next((folder / name for name in _PYREFT_CONFIGS if (folder / name).is_file()), None)
    keys = _read_json(ours).keys()
    if "intervention" in keys:
        raise UserError(f"{folder} is an adapter of this project already; pass it as --adapter, or to from_pretrained")
    if "representations" not in keys:
        raise UserError(
            f"{ours} must be of this project (intervention, site, …) or of EasySteer (representations, …); it holds"
            f" {', '.join(sorted(keys)) or 'nothing'}"
        )
    return ours


def read_pyreft(path: Path) -> Foreign:
    """Reads the config at ``path``, which says what acts where, and the parameters in ``intkey_….bin`` beside it."""
    config, folder = _Config.read(path), path.parent
    intervention, found, files = config.intervention, [], _files(path)
    for representation, width in zip(config.representations, config.widths, strict=True):
        layer, site = _place(representation, path)
        key = _file_key(representation)
        if len(config.representations) == 1 and [file.suffix for file in files.values()] == [".bin"]:
            key = next(iter(files))  # under any name
        if key not in files:
            raise UserError(f"{folder} must hold a file for each intervention, one a layer; there is no {key}.bin")
        file = files.pop(key)
        intervention, tensors = _read_parameters(file, intervention)
        *ranks, size = shape_of(tensors)
        told, has = (representation.low_rank_dimension, width), (ranks[0] if ranks else None, size)
        if any(said not in (None, number) for said, number in zip(told, has, strict=True)):
            raise UserError(f"{path} says rank and width {told} of {file.name}, whose tensors have {has}")
        found.append((layer, site, tensors))
    if files:
        raise UserError(f"{folder} holds {next(iter(files.values())).name}, which its {path.name} does not account for")
    if intervention is None:  # no place and no class
        raise UserError(f"{path} must name a place that is intervened on; it names none")
    notes = (*config.notes(intervention), *config.training)
    return Foreign(intervention, found, None if intervention in ELEMENTWISE else config.act_fn, notes)


def _files(config: Path) -> dict[str, Path]:
    """Returns files beside the config by pyvene's names for them, without files that only describe an adapter."""
    files: dict[str, Path] = {}
    for file in sorted(config.parent.iterdir()):
        if file == config or _ABOUT.fullmatch(file.name):
            continue
        # Older versions of pyvene wrote dots, newer ones write underscores (pyreft issue 101).
        key = file.stem.replace(".", "_") if file.suffix == ".bin" else file.name
        if key in files:
            raise UserError(
                f"{config.parent} must hold one file for each intervention; {file.name} and {files[key].name} are one's"
            )
        files[key] = file
    return files


@dataclass(frozen=True)
class _Config:
    """The config of a pyreft folder.

    Attributes:
        name: The interventions' class; None if not named, as in EasySteer's first files.
        representations: Place of each intervention, in pyvene's terms.
        widths: Width of each intervention; None if not given.
        act_fn: EasySteer's activation.
        training: EasySteer's training settings, in one line.
    """

    name: str | None
    representations: list[Any]
    widths: list[Any]
    act_fn: str | None
    training: tuple[str, ...]

    @property
    def intervention(self) -> InterventionName | None:
        return None if self.name is None else _CLASSES[self.name.rpartition(".")[2]]

    def notes(self, intervention: InterventionName) -> tuple[str, ...]:
        """Names a class of another project, which its tensors identify as the equivalent of a pyreft class."""
        if self.name is not None and self.name.startswith(_KNOWN_MODULES):
            return ()
        return (f"class {self.name or 'not named'}: taken for {intervention} by its tensors, and not imported",)

    @classmethod
    def read(cls, path: Path) -> _Config:
        config = _read_json(path)
        try:
            unknown = sorted(config.keys() - _CONFIG_KEYS)
            representations = [
                pv.RepresentationConfig(**row) if isinstance(row, dict) else pv.RepresentationConfig(*row)
                for row in config["representations"]
            ]
            count, mode = len(representations), config.get("mode", "parallel")
            types = None if "intervention_types" not in config else list(map(str, config["intervention_types"]))
            widths = config.get("intervention_dimensions") or [None] * count
            sources = config.get("intervention_constant_sources") or [True] * count
            told = dict(config.get("easysteer_training") or {})
            lengths = {count, len(widths), count if types is None else len(types)}
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is no config of pyreft's ({type(error).__name__}: {error})") from None
        names = {name.removeprefix("<class '").removesuffix("'>") for name in types or ()}
        is_known = len(names) == 1 and all(name.rpartition(".")[2] in _CLASSES for name in names)
        if not (is_known or types is None) or mode != "parallel":
            raise UserError(
                f"{path} must name a class {' or '.join(_CLASSES)}, acting in parallel;"
                f" it names {', '.join(sorted(names)) or 'none'}, {mode}"
            )
        if unknown or len(lengths) > 1 or sources != [True] * count:
            raise UserError(
                f"{path} must have pyvene's keys only, and a class, a width and a constant source for each of {count}"
                f" places; it has {', '.join(unknown) or f'{len(names)} classes, widths {widths}, sources {sources}'}"
            )
        act_fn = config.get("act_fn") or told.pop("act_fn", None)
        training = (f"EasySteer's training, not taken over: {told}",) if told else ()
        return cls(next(iter(names), None), representations, widths, act_fn, training)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no config of pyreft's ({type(error).__name__}: {error})") from None


def _place(representation: Any, config: Path) -> tuple[int, str]:
    """Returns layer and site of an intervention given in pyvene's terms."""
    component = str(representation.component)
    raw = _RAW_COMPONENT.fullmatch(component)
    layer, path = (int(raw[1]), raw[2] or "") if raw else (representation.layer, _COMPONENTS.get(component))
    site = component if component in SITES else None if path is None else site_at(_LAST_LINEAR.get(path, path))
    odd = [name for name, value in representation._asdict().items() if name not in _PLACE_FIELDS and value is not None]
    if site is None or not isinstance(layer, int) or representation.unit != "pos" or odd:
        raise UserError(
            f"{config}: interventions can be imported at {', '.join(SITES)}, each on its own;"
            f" got {component} by {representation.unit}{''.join(f', with {name}' for name in odd)}"
        )
    return layer, site


def _file_key(representation: Any) -> str:
    """Returns pyvene's file name for an intervention that is alone at its place."""
    component = str(representation.component)
    is_raw = "." in component
    place = f"comp_{component.replace('.', '_')}" if is_raw else f"layer_{representation.layer}_comp_{component}"
    return f"intkey_{place}_unit_pos_nunit_{representation.max_number_of_units}#0"


def _read_parameters(file: Path, intervention: InterventionName | None) -> tuple[InterventionName, Tensors]:
    """Returns an intervention's kind and parameters; without a named class, the pyreft kind with such parameters."""
    tensors = _load(file)
    if "learned_source.weight" in tensors:  # the module's own names, which pyreft's LoReFT leaves out
        short = {name.removeprefix("learned_source."): tensor for name, tensor in tensors.items()}
        tensors = short if len(short) == len(tensors) else tensors
    if intervention is None:
        intervention = "loreft" if _ROTATION in tensors else "bias"
    widths = {name: tensors.pop(name) for name in _WIDTHS if name in tensors}
    if intervention in ELEMENTWISE:
        width = tensors["bias"].numel() if "bias" in tensors else 0
        _expect(tensors, dict.fromkeys(("scale", "bias") if intervention == "red" else ("bias",), (width,)), file)
    else:
        tensors, width = _read_subspace(file, tensors)
    if any(tensor.shape != () or tensor != width for tensor in widths.values()):
        raise UserError(f"{file}: {' and '.join(_WIDTHS)} must be the width {width}; they are not")
    return intervention, tensors


def _read_subspace(file: Path, tensors: Tensors) -> tuple[Tensors, int]:
    """Returns ``weight``, ``bias`` and ``rotation``, and the width.

    pyreft's LoReFT saves its rotation directly, its DiReFT as torch's parametrisation does:
    ``Rᵀ = base · householder(original)``; a missing base is 1.
    """
    rank, width = _size(tensors, "weight", "bias")
    shapes: dict[str, tuple[int, ...]] = {"weight": (rank, width), "bias": (rank,)}
    if _ROTATION in tensors:
        _expect(tensors, {**shapes, _ROTATION: (width, rank)}, file)
        rotation = tensors[_ROTATION]
    else:
        base = {_BASE: (width, width)} if _BASE in tensors else {}
        _expect(tensors, {**shapes, _ORIGINAL: (width, rank), **base}, file)
        householder = orthonormal(width, rank)
        householder.load_state_dict({"parametrizations.weight.original": tensors[_ORIGINAL]})
        rotation = householder.weight.detach()  # type: ignore[operator]
        rotation = tensors[_BASE] @ rotation if base else rotation
    return {"weight": tensors["weight"], "bias": tensors["bias"], "rotation": rotation}, width


# --- BREP -----------------------------------------------------------------------------------------------------------


def read_brep(file: Path) -> Foreign:
    """Reads ``model.layers.{l}.{module}.delta_vector.activation_scaling`` and ``…activation_bias``, ``(1, width)``.

    A file with only biases becomes `bias`; a file with only scales becomes `red`, with biases of 0.
    """
    places: dict[tuple[int, str], Tensors] = {}
    for key, tensor in _load(file).items():
        match = _BREP_KEY.fullmatch(str(key))
        if match and match[2] is None:
            raise UserError(
                f"{file} must say of which module's output it holds scales and biases; {key} names a layer and no"
                " module (op_position layer, which BREP's published code does not have): what was edited is missing"
            )
        site = site_at(match[2]) if match else None
        if match is None or site is None:
            raise UserError(f"{file} must hold scales and biases of {', '.join(SITES[:-1])} only; got {key}")
        places.setdefault((int(match[1]), site), {})[match[3]] = tensor
    kept = sorted({name for tensors in places.values() for name in tensors})
    if not kept:
        raise UserError(
            f"{file} must hold scales or biases; it holds none, as BREP's code saves where its op_position (layer, say)"
            " is of no module that it replaces: nothing was trained"
        )
    found: list[Found] = []
    for (layer, site), tensors in places.items():
        width = max(tensor.numel() for tensor in tensors.values())
        _expect(tensors, dict.fromkeys(kept, (1, width)), f"{file}, layer {layer}, {site}")
        bias = tensors[_BIAS].squeeze(0) if _BIAS in kept else torch.zeros(width)
        scale = {"scale": tensors[_SCALING].squeeze(0)} if _SCALING in kept else {}
        found.append((layer, site, {**scale, "bias": bias}))
    return Foreign("red" if _SCALING in kept else "bias", found)


# --- both -----------------------------------------------------------------------------------------------------------


def _load(file: Path) -> Tensors:
    """In float32."""
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(
            f"{file} must hold tensors and nothing else, as torch.save writes them; it cannot be read so"
            f" ({type(error).__name__})"
        ) from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise UserError(f"{file} must hold a dictionary of tensors; it holds something else")
    return {name: _numbers(tensor, f"{file}: {name}", name in _WIDTHS) for name, tensor in tensors.items()}


def _numbers(tensor: torch.Tensor, name: str, is_width: bool) -> torch.Tensor:
    """Returns ``tensor`` in float32 if it holds finite real numbers; a width may be an integer."""
    is_dense = tensor.layout == torch.strided and not tensor.is_meta
    if not is_dense or not (tensor.is_floating_point() or (is_width and tensor.dtype == torch.int64)):
        kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
        raise UserError(f"{name} must be a dense tensor of floating numbers; it is {kind}")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():  # a view that repeats numbers
        raise UserError(f"{name} must be stored whole; its shape is {tuple(tensor.shape)}")
    numbers = tensor.detach().float()
    if not numbers.isfinite().all():
        raise UserError(f"{name} must be finite in float32; it is not")
    return numbers


def _size(tensors: Tensors, weight: str, bias: str) -> tuple[int, int]:
    """Returns rank and width, if the shapes are consistent."""
    if weight not in tensors or bias not in tensors:
        return 0, 0
    rank = tensors[bias].numel()
    return rank, tensors[weight].numel() // max(rank, 1)


def _expect(tensors: Tensors, shapes: Mapping[str, tuple[int, ...]], where: str | Path) -> None:
    """Raises `UserError` unless exactly these tensors are present, in these shapes."""
    got = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(got.keys() | shapes.keys(), key=str):
        if got.get(name) != shapes.get(name):
            expected, came = (found.get(name, "absent") for found in (shapes, got))
            raise UserError(f"{where}: {name} must be {expected}; it is {came}")
