"""Model cards of adapters, and of bases with an adapter in their weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interventions.norms import mean_norm
from reft_math.files.atomic import write_text
from reft_math.models.adapter_files import load_tensors
from reft_math.models.card import (
    CARD_NAME,
    NO_NOTES,
    PLACE,
    TrainingNotes,
    base_in_words,
    base_metadata,
    base_name,
    facts,
    in_words,
    make_card,
    parameters_sha256,
    read_card,
    save_card,
)
from reft_math.models.config import PrefixReftConfig

_GATE = "gate in decoding"
_NAMES = {
    "red": ("RED", "s ⊙ h + b"),
    "bias": ("Bias", "h + b"),
    "loreft": ("LoReFT", "h + Rᵀ(σ(Wh + b) − Rh)"),
    "direft": ("DiReFT", "h + Rᵀσ(Wh + b)"),
}

_LOADING = f"""
## Loading

```python
from interventions import PrefixReftModel  # reft-math
from reft_math.models import load_model

base = load_model("BASE")
model = PrefixReftModel.from_pretrained("{PLACE}", base)
output = model.generate(**prompt, max_new_tokens=512)  # under the gate above; gate="always", gate="off", …
```

Stock pyvene and pyreft load it too, without gates:

```python
import interventions  # reft-math; registers the site names with pyvene
import pyreft

model = pyreft.ReftModel.load("{PLACE}", base)  # or pyvene.IntervenableModel.load
```
"""


def write_adapter_card(folder: Path, notes: TrainingNotes = NO_NOTES) -> None:
    """Writes the card of the adapter saved in a folder; in an existing card only the metadata are updated.

    Args:
        folder: Folder written by `PrefixReftModel.save_pretrained`.
        notes: Notes on the run that trained it.

    Raises:
        UserError: The folder's files, or the card there, cannot be read.
    """
    config = PrefixReftConfig.from_pretrained(folder)
    data = {
        **base_metadata(config.base_model, "adapter"),
        "library_name": "reft-math",
        "pipeline_tag": "text-generation",
        "tags": ["reft", config.intervention, "pyvene", "pyreft"],
        **notes.metadata,
    }
    base = None if config.base_model is None else base_name(config.base_model)
    title = f"{_NAMES[config.intervention][0]} adapter" + (f" for {base}" if base else "")
    about = facts(_about(config, folder)) + _LOADING.replace("BASE", base or "its-base")
    save_card(folder, make_card(data, title, about, notes.text))


def renew_gate(folder: Path, before: str, now: str) -> None:
    """Replaces the gate in the card, if its line on the gate is unchanged."""
    if card := read_card(folder):
        old, new = (f"- **{_GATE}**: `{gate}`\n" for gate in (before, now))
        write_text(folder / CARD_NAME, card.replace(old, new))


def write_merged_card(folder: Path, base: str, config: PrefixReftConfig) -> None:
    """Writes the card of a base that has an adapter folded into its weights."""
    name = _NAMES[config.intervention][0]
    data = {
        **base_metadata(base, "finetune"),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["reft", config.intervention],
    }
    about = {
        "base": base_in_words(base, config.base_revision if base == config.base_model else None),
        "in its weights": f"{name} at `{config.site}`, layers {_layers(config)}",
        "acts": "at every token of prompt and answer; weights have no gate",
        "the adapter's own gate": f"`{config.gate}`",
    }
    text = facts(about) + "\nA plain transformers checkpoint: `AutoModelForCausalLM.from_pretrained` loads it.\n"
    save_card(folder, make_card(data, f"{base_name(base)} with {name} in its weights", text))


def _about(config: PrefixReftConfig, folder: Path) -> Mapping[str, Any]:
    name, formula = _NAMES[config.intervention]
    tensors = load_tensors(folder)
    norm = mean_norm([tensor for key, tensor in tensors.items() if key.endswith(".bias")]).item()
    target = "" if config.target_norm is None else f"; target in training {config.target_norm:g}"
    return {
        "base": config.base_model and base_in_words(config.base_model, config.base_revision),
        "intervention": f"{name}, `{formula}`" + (f" with σ = {config.act_fn}" if config.act_fn else ""),
        "site": f"`{config.site}`, width {config.width}",
        "layers": _layers(config),
        "rank": config.rank,
        "positions": config.positions,
        "prefix trained on": None if config.k is None else f"the first K = {config.k} tokens of solutions",
        "bias norm, mean over layers of ‖b‖₂": f"{norm:.4f}{target}",
        _GATE: f"`{config.gate}`",
        "parameters": f"{sum(tensor.numel() for tensor in tensors.values()):,}, {parameters_sha256(folder)}",
        "prompt template": config.template,
        "versions": in_words(config.versions),
    }


def _layers(config: PrefixReftConfig) -> str:
    return ", ".join(map(str, config.layers))
