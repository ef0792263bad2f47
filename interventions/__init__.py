"""Interventions for pyvene and pyreft: what acts inside a model, where, on which tokens, and for how long.

Importing this package registers its site names with pyvene. Adapters made of interventions are `reft_math.models`'; the
names that users and saved model cards import from here are fetched from there.
"""

import contextlib
import io
from importlib import import_module
from typing import TYPE_CHECKING, Any

with contextlib.redirect_stdout(io.StringIO()):  # pyvene prints that nnsight, a backend not used here, is missing
    import pyvene  # noqa: F401

from interventions.bias import BiasIntervention
from interventions.direft import DireftIntervention
from interventions.loreft import LoreftIntervention
from interventions.red import RedIntervention
from interventions.sites import register_sites

if TYPE_CHECKING:
    from reft_math.models.adapter import PrefixReftModel, get_prefix_reft_model
    from reft_math.models.config import PrefixReftConfig
    from reft_math.models.importing import import_checkpoint, read_checkpoint
    from reft_math.models.merging import merge

register_sites()

_ADAPTERS = {
    "PrefixReftConfig": "config",
    "PrefixReftModel": "adapter",
    "get_prefix_reft_model": "adapter",
    "import_checkpoint": "importing",
    "merge": "merging",
    "read_checkpoint": "importing",
}


def __getattr__(name: str) -> Any:
    if name in _ADAPTERS:
        return getattr(import_module(f"reft_math.models.{_ADAPTERS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "BiasIntervention",
    "DireftIntervention",
    "LoreftIntervention",
    "PrefixReftConfig",
    "PrefixReftModel",
    "RedIntervention",
    "get_prefix_reft_model",
    "import_checkpoint",
    "merge",
    "read_checkpoint",
]
