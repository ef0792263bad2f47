"""The configuration saved beside an adapter's weights."""

from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from interventions.gates import PromptOnly, parse_gate
from interventions.positions import BEHIND_PROMPTS, Positions
from interventions.subspace import LINEAR, check_options
from reft_math.commands.options.training import ELEMENTWISE
from reft_math.data.arithmetic import EMBEDDED_MODEL
from reft_math.errors import UserError
from reft_math.files.atomic import write_json
from reft_math.files.strict import from_json, read_object
from reft_math.models.base import absolute_name
from reft_math.models.gguf_files import file_sha256, is_gguf

ADAPTER_CONFIG = "reft_config.json"
InterventionName = Literal["red", "bias", "loreft", "direft"]


@dataclass(frozen=True)
class PrefixReftConfig:
    """An adapter's configuration: which intervention acts where, how it was trained, and its default decoding.

    Attributes:
        intervention: ``red``, ``bias``, ``loreft`` or ``direft``.
        site: A name from `interventions.sites`, or a module's path with ``{layer}`` for the layer's number.
        layers: ``all``, or numbers and ranges (``0,2,8-11``), or the numbers; saved as the numbers.
        positions: Where the intervention acts: ``all`` (prompt and generated tokens), ``solution`` (the prompt's
            last token and generated ones), ``generated`` or ``prompt``.
        rank: Rank of LoReFT and DiReFT; None for the others.
        act_fn: ``σ`` of LoReFT and DiReFT, one of transformers' activations without parameters; None: ``σ(x) = x``.
        dropout: Dropout of LoReFT and DiReFT in training.
        width: Width of the site; filled in when the adapter is made and checked when it is loaded.
        k: Number of tokens of each solution it was trained on; None for whole solutions.
        target_norm: The bias norm held in training; None if it was free.
        gate: Default gate in decoding as text, such as ``kl:2,min=1``, ``tokens:N`` or ``always``.
        base_model, base_revision: Hub id, folder or ``.gguf`` file of the base, and its commit or the file's digest.
        template: Name and version of the prompt template, e.g. ``chat/1``.
        versions: Versions of the packages that wrote the adapter.
    """

    intervention: InterventionName = "red"
    site: str = "ffn_up"
    layers: str | tuple[int, ...] = "all"
    positions: Positions = "all"
    rank: int | None = None
    width: int | None = None
    k: int | None = None
    target_norm: float | None = None
    gate: str = "always"
    base_model: str | None = None
    base_revision: str | None = None
    template: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    act_fn: str | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, choices in (("intervention", get_args(InterventionName)), ("positions", get_args(Positions))):
            value = getattr(self, name)
            if value not in choices:
                raise UserError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
        if isinstance(parse_gate(self.gate), PromptOnly) and self.positions in BEHIND_PROMPTS:
            raise UserError(
                f"gate prompt is for adapters that act on the prompt; this one acts on {self.positions} positions"
            )
        if not isinstance(self.layers, str | tuple):
            raise UserError(f"layers must be text or whole numbers; got {self.layers!r}")
        for name in ("width", "k"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise UserError(f"{name} must be at least 1; got {count}")
        if self.target_norm is not None and not 0 <= self.target_norm < math.inf:
            raise UserError(f"target_norm must be 0 or more, and finite; got {self.target_norm}")
        if self.rank is not None and (self.intervention in ELEMENTWISE or self.rank < 1):
            raise UserError(
                f"rank is LoReFT's and DiReFT's, a whole number of at least 1; got {self.rank} for {self.intervention}"
            )
        self._check_options()

    def _check_options(self) -> None:
        if self.intervention in ELEMENTWISE and (self.act_fn is not None or self.dropout != 0):
            raise UserError(
                f"act_fn and dropout are LoReFT's and DiReFT's; got {self.act_fn!r} and {self.dropout} for"
                f" {self.intervention}"
            )
        check_options(self.act_fn or LINEAR, self.dropout)

    def resolve_base(self, model: str | None, revision: str | None) -> tuple[str, str | None]:
        """Returns name and revision of the base for the adapter: its own by default. Warns if it is another.

        Args:
            model, revision: Requested base; None for the adapter's own.
        """
        base = self.base_model or EMBEDDED_MODEL
        if model is None:
            return base, revision or self.base_revision
        if is_gguf(model) and Path(model).is_file() and file_sha256(Path(model)) == self.base_revision:
            return model, self.base_revision
        if absolute_name(model) != base:
            warnings.warn(f"the adapter was trained on {base}, and is put on {model}", stacklevel=2)
        return model, revision

    def save_pretrained(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(Path(folder) / ADAPTER_CONFIG, dataclasses.asdict(self))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> PrefixReftConfig:
        """Reads ``reft_config.json``.

        Raises:
            UserError: The file is missing, lacks a field, or holds an unknown field or an invalid value.
        """
        path = Path(folder) / ADAPTER_CONFIG
        try:
            return from_json(cls, read_object(path))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} is not a readable adapter config ({error}); was the folder saved by save_pretrained? One of"
                " another project is for train/import_checkpoint.py"
            ) from None
