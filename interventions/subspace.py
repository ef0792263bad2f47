"""The base class of LoReFT and DiReFT: an edit within a learnt low-rank subspace."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from transformers.activations import ACT2FN

from interventions.edit import Edit
from reft_math.errors import UserError

DEFAULT_RANK = 4
LINEAR = "linear"
OPTIONS = "options"


def check_options(act_fn: object, dropout: object) -> None:
    """Raises `UserError` unless these are an activation without parameters and a probability less than 1."""
    if not isinstance(act_fn, str) or act_fn not in ACT2FN or ACT2FN[act_fn].state_dict():
        raise UserError(
            f"act_fn must be one of transformers' activations without parameters, such as relu; got {act_fn!r}"
        )
    if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise UserError(f"dropout must be in [0, 1); got {dropout!r}")


class Rotation(nn.Module):
    """Holds ``Rᵀ: (width, rank)``, whose columns `orthonormal` keeps orthonormal."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(width, rank, dtype=torch.float32)))


def orthonormal(width: int, rank: int) -> nn.Module:
    """Returns a random `Rotation` whose columns a parametrisation keeps orthonormal."""
    # Without trivialisation: its base matrix is (width, width), 64 MB a layer at width 4096.
    return parametrizations.orthogonal(Rotation(width, rank), use_trivialization=False)


class SubspaceIntervention(Edit):
    """``f(h) = h + Rᵀ edit(h)``, with dropout on the result while training

    ``h: (…, width)`` of any dtype; ``R, W: (rank, width)`` with ``RRᵀ = I``; ``b: (rank,)``; ``σ = act_fn``, one of
    transformers' activations without parameters. Parameters are kept and applied in float32, outside autocast; the
    result has the dtype of ``h``.

    pyvene constructs it from a `RepresentationConfig`'s fields, which lack ``act_fn`` and ``dropout``: values other
    than the defaults are saved with the parameters.
    """

    rotate_layer: nn.Module
    learned_source: nn.Linear

    def __init__(
        self,
        *,
        embed_dim: int | None = None,
        low_rank_dimension: int | None = None,
        act_fn: str | None = None,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.rank = low_rank_dimension or DEFAULT_RANK
        self.set_options(act_fn or LINEAR, dropout)
        self.register_state_dict_post_hook(_write_options)
        self.register_load_state_dict_pre_hook(_read_options)
        if embed_dim is not None:
            self.set_interchange_dim(embed_dim)

    def set_options(self, act_fn: str, dropout: float) -> None:
        check_options(act_fn, dropout)
        self.options: dict[str, Any] = {"act_fn": act_fn, "dropout": dropout}
        self.act_fn = ACT2FN[act_fn]
        self.dropout = nn.Dropout(dropout)

    def set_interchange_dim(self, interchange_dim: int | torch.Tensor) -> None:
        super().set_interchange_dim(interchange_dim)
        width = int(interchange_dim)
        self.rotate_layer = orthonormal(width, self.rank)
        self.learned_source = nn.Linear(width, self.rank, dtype=torch.float32)

    @property
    def bias(self) -> torch.Tensor:
        return self.learned_source.bias

    def forward(self, base: torch.Tensor, source: None = None, subspaces: None = None) -> torch.Tensor:
        with torch.autocast(base.device.type, enabled=False):
            rotation: torch.Tensor = self.rotate_layer.weight  # type: ignore[assignment]
            dtype = torch.promote_types(base.dtype, rotation.dtype)
            hidden, rotation = base.to(dtype), rotation.to(dtype)
            target = self.act_fn(
                F.linear(hidden, self.learned_source.weight.to(dtype), self.learned_source.bias.to(dtype))
            )
            edited = hidden + self.edit(hidden, rotation, target) @ rotation.T
            return self.dropout(edited.to(base.dtype))  # type: ignore[no-any-return]

    def edit(self, hidden: torch.Tensor, rotation: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the change within the subspace, from ``h``, ``Rᵀ: (width, rank)`` and ``σ(Wh + b): (…, rank)``."""
        raise NotImplementedError


def _write_options(module: SubspaceIntervention, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Writes the options as bytes, because code that handles state dicts expects tensors."""
    if module.options != {"act_fn": LINEAR, "dropout": 0.0}:
        text = json.dumps(module.options).encode()
        state[prefix + OPTIONS] = torch.tensor(list(text), dtype=torch.uint8)


def _read_options(module: SubspaceIntervention, state: dict[str, Any], prefix: str, *_: Any) -> None:
    data = state.pop(prefix + OPTIONS, None)
    if data is None:
        return
    try:
        options = json.loads(bytes(data.tolist()))
    except (TypeError, ValueError):
        options = None
    if not isinstance(options, dict) or options.keys() != {"act_fn", "dropout"}:
        raise UserError(f"{prefix}{OPTIONS} must hold act_fn and dropout as JSON in bytes; it does not")
    module.set_options(**options)
