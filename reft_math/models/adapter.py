"""An adapter: interventions on a base, with their settings, files and card."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyreft
import pyvene as pv
import torch
from huggingface_hub import CommitInfo
from transformers import PreTrainedModel

from interventions.bias import BiasIntervention
from interventions.direft import DireftIntervention
from interventions.edit import Edit
from interventions.gates import Gate
from interventions.generation import Handoff
from interventions.hooked import HookedReftModel
from interventions.loreft import LoreftIntervention
from interventions.positions import Positions
from interventions.red import RedIntervention
from interventions.sites import check_site, component, num_layers, parse_layers, site_width
from interventions.subspace import DEFAULT_RANK
from reft_math.commands.options.training import ELEMENTWISE
from reft_math.errors import UserError
from reft_math.files.atomic import write_files
from reft_math.models import adapter_files
from reft_math.models.adapter_card import write_adapter_card
from reft_math.models.base import endings
from reft_math.models.config import ADAPTER_CONFIG, PrefixReftConfig
from reft_math.models.hub import fetch, push

_CLASSES: dict[str, type[Edit]] = {
    "red": RedIntervention,
    "bias": BiasIntervention,
    "loreft": LoreftIntervention,
    "direft": DireftIntervention,
}


def get_prefix_reft_model(model: PreTrainedModel, config: PrefixReftConfig) -> PrefixReftModel:
    """Puts fresh interventions on a frozen base. RED and biases start without effect, the others at random.

    Raises:
        UserError: The model lacks the site or the layers, or its width differs from the config's.
    """
    if hasattr(model, "_orig_mod"):
        raise UserError("interventions go into the model itself; instead of torch.compile(model) call model.compile()")
    check_site(model, config.site)
    layers = parse_layers(config.layers, num_layers(model))
    width = site_width(model, config.site, layers)
    if config.width not in (None, width):
        raise UserError(
            f"an adapter fits models of its own width: this one is for {config.site} of width {config.width}"
            f" (base {config.base_model}), the model's is {width}"
        )
    rank = None if config.intervention in ELEMENTWISE else config.rank or DEFAULT_RANK
    if rank is not None and rank > width:
        raise UserError(f"rank must be at most the site's width {width}; got {rank}")
    config = replace(config, layers=layers, width=width, rank=rank)
    representations = [
        pv.RepresentationConfig(
            layer=layer,
            component=component(model, config.site, layer),
            low_rank_dimension=rank,
            intervention=new_intervention(config, width),
        )
        for layer in layers
    ]
    return PrefixReftModel(pyreft.ReftConfig(representations=representations), model, config)


def new_intervention(config: PrefixReftConfig, width: int) -> Edit:
    """Returns a fresh intervention for a site of that width."""
    make = _CLASSES[config.intervention]
    return make(embed_dim=width, low_rank_dimension=config.rank, act_fn=config.act_fn, dropout=config.dropout)


class PrefixReftModel(HookedReftModel):
    """An adapter: interventions on a base, with settings, files and card.

    `forward` takes the base's arguments and an ``intervention_mask``; `generate` takes the base's arguments and a
    ``gate``, by default the adapter's own. Outside these two calls the base's logits are unchanged to the last bit.
    """

    def __init__(self, config: pyreft.ReftConfig, model: PreTrainedModel, prefix_config: PrefixReftConfig) -> None:
        self.prefix_config = prefix_config
        super().__init__(config, model, prefix_config.site)

    @property
    def positions(self) -> Positions:
        """The positions where the interventions act."""
        return self.prefix_config.positions

    @property
    def gate(self) -> str:
        """The adapter's default gate in decoding."""
        return self.prefix_config.gate

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        gate: Gate | str | None = None,
        handoff: Handoff = "base",
        input_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Calls `HookedReftModel.generate`; with ``tokenizer`` it also stops where the template ends an answer.

        Given ``eos_token_id`` and ``stopping_criteria`` take precedence.
        """
        tokenizer, template = kwargs.get("tokenizer"), self.prefix_config.template
        if tokenizer is not None and template is not None and kwargs.get("generation_config") is None:
            kwargs = {**endings(self.model, tokenizer, template), **kwargs}
        return super().generate(inputs, gate, handoff, input_ids, **kwargs)

    # --- files --------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Writes safetensors, ``reft_config.json``, a model card and the files that stock pyvene loads.

        A card already in the folder keeps its text.
        """
        adapter_files.save(folder, self.prefix_config, self.interventions)
        write_adapter_card(Path(folder))
        with contextlib.redirect_stdout(io.StringIO()):  # pyvene prints that the folder exists
            write_files(Path(folder), lambda aside: super(PrefixReftModel, self).save(str(aside)))

    def load_weights(self, folder: str | Path) -> None:
        """Puts a saved adapter's parameters into this model's interventions."""
        adapter_files.load_weights(folder, self.interventions)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, model: PreTrainedModel, revision: str | None = None
    ) -> PrefixReftModel:
        """Loads an adapter from a folder or the hub onto its base.

        Raises:
            UserError: There is no adapter, or it does not fit the model.
        """
        folder = fetch(source, ADAPTER_CONFIG, revision)
        reft_model = get_prefix_reft_model(model, PrefixReftConfig.from_pretrained(folder))
        reft_model.load_weights(folder)
        reft_model.interventions.eval()  # as in transformers: dropout is off until `train`
        return reft_model

    @classmethod
    def load(cls, *args: Any, **kwargs: Any) -> PrefixReftModel:
        """Calls `from_pretrained`: pyvene's own ``load`` imports any class that a folder's ``config.json`` names."""
        return cls.from_pretrained(*args, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> CommitInfo:
        """Saves to the hub; keyword arguments as in `reft_math.models.hub.push`."""
        return push(self.save_pretrained, repo_id, **kwargs)
