"""Files of other projects: pyreft's LoReFT and DiReFT folders, BREP's ``delta_vector.pth``.

Nothing that stands in them is imported or run, and everything that they hold is either used or refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyvene as pv
import torch

from interventions.config import InterventionName
from interventions.sites import SITES, site_at
from interventions.subspace import orthonormal
from reft_math.errors import UserError
from reft_math.files import check_regular
from reft_math.json_text import read_object

Tensors = dict[str, torch.Tensor]
Found = tuple[int, str, Tensors]  # layer, site, parameters

# pyvene would import whatever stands here; this reader imports nothing.
_PYREFT_CLASSES: dict[str, InterventionName] = {
    "<class 'pyreft.interventions.LoreftIntervention'>": "loreft",
    "<class 'pyreft.interventions.DireftIntervention'>": "direft",
}
# What pyvene and transformers write. Sorted keys order what acts at one place, which is refused; the last are labels.
_CONFIG_KEYS = {
    *("mode", "representations", "intervention_types", "intervention_dimensions", "intervention_constant_sources"),
    *("sorted_keys", "model_type", "transformers_version"),
}
_PLACE_FIELDS = {"layer", "component", "unit", "max_number_of_units", "low_rank_dimension"}
_ABOUT = re.compile(r"\..*|(README|LICENSE)(\.md|\.txt)?")  # files about an adapter, which hub downloads bring
# pyvene's names for outputs of a layer's submodules, and the two modules whose output is that of their last linear.
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
_WIDTHS = ("embed_dim", "interchange_dim")  # DiReFT's, beside its parameters
_BREP_KEY = re.compile(r"model\.layers\.([0-9]{1,6})\.(.+)\.delta_vector\.(activation_scaling|activation_bias)")
_BREP_NAMES = ("activation_scaling", "activation_bias")


# --- pyreft ---------------------------------------------------------------------------------------------------------


def read_pyreft(folder: Path) -> tuple[InterventionName, list[Found]]:
    """``config.json`` says what acts where, ``intkey_….bin`` hold the parameters."""
    intervention, representations, widths = _read_config(folder / "config.json")
    read = {"loreft": _read_loreft, "direft": _read_direft}[intervention]
    files = _files(folder)
    found: list[Found] = []
    for representation, width in zip(representations, widths, strict=True):
        layer, site = _place(representation, folder)
        key = _file_key(representation)
        if key not in files:
            raise UserError(f"{folder} must hold a file for each intervention, one a layer; there is no {key}.bin")
        file = files.pop(key)
        tensors = read(file)
        told, size = (representation.low_rank_dimension, width), tuple(tensors["weight"].shape)
        if any(said not in (None, has) for said, has in zip(told, size, strict=True)):
            raise UserError(
                f"{folder}/config.json says rank and width {told} of {file.name}, whose tensors have {size}"
            )
        found.append((layer, site, tensors))
    if files:
        raise UserError(f"{folder} holds {next(iter(files.values())).name}, which its config.json does not account for")
    return intervention, found


def _files(folder: Path) -> dict[str, Path]:
    """Files by pyvene's names for them, but for the config and what is only about an adapter."""
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.name == "config.json" or _ABOUT.fullmatch(file.name):
            continue
        # Older versions of pyvene wrote dots where newer ones write underscores (pyreft issue 101).
        key = file.stem.replace(".", "_") if file.suffix == ".bin" else file.name
        if key in files:
            raise UserError(
                f"{folder} must hold one file for each intervention; {file.name} and {files[key].name} are one's"
            )
        files[key] = file
    return files


def _read_config(path: Path) -> tuple[InterventionName, list[Any], list[Any]]:
    """The interventions' class, and for each of them pyvene's description of where it acts and its width."""
    try:
        config = read_object(path)
        unknown = sorted(config.keys() - _CONFIG_KEYS)
        mode, types = config["mode"], list(config["intervention_types"])
        representations = [pv.RepresentationConfig(*row) for row in config["representations"]]
        count, classes = len(representations), set(types)
        widths = config.get("intervention_dimensions") or [None] * count
        lengths = {count, len(types), len(widths)}
        sources = config.get("intervention_constant_sources") or [True] * count
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is no config of pyreft's ({type(error).__name__}: {error})") from None
    if len(classes) != 1 or not classes <= _PYREFT_CLASSES.keys() or mode != "parallel":
        raise UserError(
            f"{path} must name {' or '.join(_PYREFT_CLASSES)}, acting in parallel;"
            f" it names {', '.join(sorted(map(str, classes))) or 'none'}, {mode}"
        )
    if unknown or len(lengths) > 1 or sources != [True] * count:
        raise UserError(
            f"{path} must have pyvene's keys only, and a class, a width and a constant source for each of {count}"
            f" places; it has {', '.join(unknown) or f'{len(types)} classes, widths {widths}, sources {sources}'}"
        )
    return _PYREFT_CLASSES[classes.pop()], representations, widths


def _place(representation: Any, folder: Path) -> tuple[int, str]:
    """Layer and site of an intervention in pyvene's terms."""
    component = str(representation.component)
    raw = _RAW_COMPONENT.fullmatch(component)
    layer, path = (int(raw[1]), raw[2] or "") if raw else (representation.layer, _COMPONENTS.get(component))
    site = component if component in SITES else None if path is None else site_at(_LAST_LINEAR.get(path, path))
    odd = [name for name, value in representation._asdict().items() if name not in _PLACE_FIELDS and value is not None]
    if site is None or not isinstance(layer, int) or representation.unit != "pos" or odd:
        raise UserError(
            f"{folder}/config.json: interventions can be imported at {', '.join(SITES)}, each on its own;"
            f" got {component} by {representation.unit}{''.join(f', with {name}' for name in odd)}"
        )
    return layer, site


def _file_key(representation: Any) -> str:
    """pyvene's name for the file of an intervention that is alone at its place."""
    component = str(representation.component)
    is_raw = "." in component
    place = f"comp_{component.replace('.', '_')}" if is_raw else f"layer_{representation.layer}_comp_{component}"
    return f"intkey_{place}_unit_pos_nunit_{representation.max_number_of_units}#0"


def _read_loreft(file: Path) -> Tensors:
    tensors = _load(file)
    rank, width = _size(tensors, "weight", "bias")
    _expect(tensors, {"weight": (rank, width), "bias": (rank,), "rotate_layer": (width, rank)}, file)
    return {"weight": tensors["weight"], "bias": tensors["bias"], "rotation": tensors["rotate_layer"]}


def _read_direft(file: Path) -> Tensors:
    """Its rotation is kept as torch's parametrisation keeps it: ``Rᵀ = base · householder(original)``."""
    tensors = _load(file)
    weight, bias, original, base = (
        *("learned_source.weight", "learned_source.bias"),
        *("rotate_layer.parametrizations.weight.original", "rotate_layer.parametrizations.weight.0.base"),
    )
    rank, width = _size(tensors, weight, bias)
    shapes = {weight: (rank, width), bias: (rank,), original: (width, rank), base: (width, width)}
    _expect(tensors, {**shapes, **dict.fromkeys(_WIDTHS, ())}, file)
    if any(tensors[name] != width for name in _WIDTHS):
        raise UserError(f"{file}: {' and '.join(_WIDTHS)} must be the width {width}; they are not")
    householder = orthonormal(width, rank)
    householder.load_state_dict({"parametrizations.weight.original": tensors[original]})
    rotation = tensors[base] @ householder.weight.detach()  # type: ignore[operator]
    return {"weight": tensors[weight], "bias": tensors[bias], "rotation": rotation}


# --- BREP -----------------------------------------------------------------------------------------------------------


def read_brep(file: Path) -> list[Found]:
    """``model.layers.{l}.{module}.delta_vector.activation_scaling`` and ``…activation_bias``, each ``(1, width)``."""
    places: dict[tuple[int, str], Tensors] = {}
    for key, tensor in _load(file).items():
        match = _BREP_KEY.fullmatch(str(key))
        site = site_at(match[2]) if match else None
        if match is None or site is None:
            raise UserError(f"{file} must hold scales and biases of {', '.join(SITES)} only; got {key}")
        places.setdefault((int(match[1]), site), {})[match[3]] = tensor
    found: list[Found] = []
    for (layer, site), tensors in places.items():
        width = max(tensor.numel() for tensor in tensors.values())
        _expect(tensors, dict.fromkeys(_BREP_NAMES, (1, width)), f"{file}, layer {layer}, {site}")
        scale, bias = (tensors[name].squeeze(0) for name in _BREP_NAMES)
        found.append((layer, site, {"scale": scale, "bias": bias}))
    return found


# --- both -----------------------------------------------------------------------------------------------------------


def _load(file: Path) -> Tensors:
    """In float32."""
    try:
        check_regular(file)
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
    """``tensor`` in float32, if it is made of finite real numbers; a width's may be whole."""
    is_dense = tensor.layout == torch.strided and not tensor.is_meta
    if not is_dense or not (tensor.is_floating_point() or (is_width and tensor.dtype == torch.int64)):
        kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
        raise UserError(f"{name} must be a dense tensor of floating numbers; it is {kind}")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():  # a few numbers, seen many times
        raise UserError(f"{name} must be stored whole; its shape is {tuple(tensor.shape)}")
    numbers = tensor.detach().float()
    if not numbers.isfinite().all():
        raise UserError(f"{name} must be finite in float32; it is not")
    return numbers


def _size(tensors: Tensors, weight: str, bias: str) -> tuple[int, int]:
    """Rank and width, if the shapes are what they should be."""
    if weight not in tensors or bias not in tensors:
        return 0, 0
    rank = tensors[bias].numel()
    return rank, tensors[weight].numel() // max(rank, 1)


def _expect(tensors: Tensors, shapes: Mapping[str, tuple[int, ...]], where: str | Path) -> None:
    """Raises `UserError` unless these are the tensors, all of them, in these shapes."""
    got = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(got.keys() | shapes.keys(), key=str):
        if got.get(name) != shapes.get(name):
            expected, came = (found.get(name, "absent") for found in (shapes, got))
            raise UserError(f"{where}: {name} must be {expected}; it is {came}")
