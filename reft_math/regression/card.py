"""Model cards of regressors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reft_math.data import stsb
from reft_math.models.card import (
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
    save_card,
)
from reft_math.regression.config import RegressorConfig

_TUNED = {
    "none": "nothing",
    "red": "RED interventions",
    "bias": "bias interventions",
    "loreft": "LoReFT interventions",
    "lora": "LoRA",
    "full": "the whole model",
}

_LOADING = f"""
## Loading

```python
from reft_math.regression.build import load_regressor  # reft-math

regressor = load_regressor("{PLACE}")
numbers = regressor.predict(["a text", "another"])
```
"""


def write_regressor_card(folder: Path, notes: TrainingNotes = NO_NOTES) -> None:
    """Writes the card of the regressor saved in a folder; in an existing card only the metadata are updated.

    Args:
        folder: Folder written by `Regressor.save_pretrained`.
        notes: Notes on the run that trained it.

    Raises:
        UserError: The folder's config, or the card there, cannot be read.
    """
    config = RegressorConfig.from_pretrained(folder)
    data: dict[str, Any] = {
        **base_metadata(config.base_model, "finetune" if config.tune == "full" else "adapter"),
        "datasets": [stsb.HUB.id] if config.data in (stsb.NAME, stsb.PAPER) else None,
        "library_name": "reft-math",
        "tags": ["reft", "regression"],
    }
    title = "Regressor" if config.base_model is None else f"Regressor on {base_name(config.base_model)}"
    about = facts(_about(config, folder)) + _LOADING
    save_card(folder, make_card(data, title, about, notes.text))


def _about(config: RegressorConfig, folder: Path) -> Mapping[str, Any]:
    return {
        "base": config.base_model and base_in_words(config.base_model, config.base_revision),
        "base's weights": None if config.random_seed is None else f"drawn anew, seed {config.random_seed}",
        "trained": _TUNED[config.tune],
        "data": config.data and Path(config.data).name,
        "loss": f"`{config.loss}`",
        "predicts by": f"`{config.predictor}`",
        "numbers": f"`{config.grid}`",
        "parameters": parameters_sha256(folder),
        "prompt template": config.template,
        "versions": in_words(config.versions),
    }
