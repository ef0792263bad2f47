"""Interventions for pyvene and pyreft, and the model that trains, decodes, saves and loads them.

Importing this package registers its site names with pyvene.
"""

import contextlib
import io

with contextlib.redirect_stdout(io.StringIO()):  # pyvene prints that nnsight, a backend not used here, is missing
    import pyvene  # noqa: F401

from interventions.bias import BiasIntervention
from interventions.config import PrefixReftConfig
from interventions.direft import DireftIntervention
from interventions.importing import import_checkpoint, read_checkpoint
from interventions.loreft import LoreftIntervention
from interventions.merging import merge
from interventions.model import PrefixReftModel, get_prefix_reft_model
from interventions.red import RedIntervention
from interventions.sites import register_sites

register_sites()

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
