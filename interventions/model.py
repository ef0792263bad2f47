"""A base model with interventions that stay hooked in and act where a mask says."""

from __future__ import annotations

import contextlib
import io
import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyreft
import pyvene as pv
import torch
from huggingface_hub import CommitInfo
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from interventions import checkpoint
from interventions.bias import BiasIntervention
from interventions.card import write_adapter_card
from interventions.config import CONFIG_NAME, PrefixReftConfig
from interventions.direft import DireftIntervention
from interventions.loreft import LoreftIntervention
from interventions.red import RedIntervention
from interventions.sites import check_site, component, num_layers, parse_layers, site_device, site_module, site_width
from interventions.subspace import DEFAULT_RANK
from reft_math.data.positions import Positions, intervention_mask
from reft_math.decoding.gate import Gate, parse_gate
from reft_math.decoding.generation import Handoff, generate_with_gate
from reft_math.errors import UserError
from reft_math.files import write_files
from reft_math.hub import fetch, push
from reft_math.models import endings
from reft_math.training.options import ELEMENTWISE

_EVERYWHERE = torch.ones((), dtype=torch.bool)  # a mask known to be true without a look at it
_CLASSES = {
    "red": RedIntervention,
    "bias": BiasIntervention,
    "loreft": LoreftIntervention,
    "direft": DireftIntervention,
}


def get_prefix_reft_model(model: PreTrainedModel, config: PrefixReftConfig) -> PrefixReftModel:
    """Puts fresh interventions on a frozen base. RED and biases change nothing yet, the others start at random.

    Raises:
        UserError: The model lacks the site or the layers, or its width is not the one in the config.
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
            intervention=_CLASSES[config.intervention](
                embed_dim=width, low_rank_dimension=rank, act_fn=config.act_fn, dropout=config.dropout
            ),
        )
        for layer in layers
    ]
    return PrefixReftModel(pyreft.ReftConfig(representations=representations), model, config)


class _Hook:
    """A module's forward hook, which keeps nobody alive; a copy of the base alone has one that does nothing."""

    def __init__(self, owner: PrefixReftModel | None = None, key: str = "") -> None:
        self._owner = None if owner is None else weakref.ref(owner)
        self._key = key

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        owner = None if self._owner is None else self._owner()
        return None if owner is None else owner._edited(self._key, output)

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()


class PrefixReftModel(pyreft.ReftModel):
    """A `pyreft.ReftModel` whose interventions act through persistent hooks, by row and position.

    It differs from its parent in how it runs, not in what it is: configuration, interventions and files are pyvene's.
    `forward` takes what the base takes and an ``intervention_mask``; `generate` takes what the base takes and a
    ``gate``. Outside these two calls the hooks do nothing, so the base model itself stays usable, with its logits
    unchanged to the last bit, and hooks that others put on it stay where they are.
    """

    def __init__(self, config: pyreft.ReftConfig, model: PreTrainedModel, prefix_config: PrefixReftConfig) -> None:
        super().__init__(config, model)
        self.prefix_config = prefix_config
        self._mask: torch.Tensor | None = None
        self._sites: list[nn.Module] = []
        for representation, intervention in zip(self.config.representations, self.interventions.values(), strict=True):
            self._sites.append(site_module(model, prefix_config.site, representation.layer))
            device = site_device(model, prefix_config.site, representation.layer)
            if device.type != "meta":  # where a base that is yet to be sharded has no weights
                intervention.to(device)
        self._attach_anew()
        # pyvene keeps the modules themselves in its config; loggers want to write it as JSON.
        self.config.representations = [item._replace(intervention=None) for item in self.config.representations]
        self.config.intervention_types = [str(type(intervention)) for intervention in self.interventions.values()]

    # --- the hooks ----------------------------------------------------------------------------------------------

    def _attach(self) -> None:
        """Hooks in what is not: a stock pyvene model on the same base clears all hooks, these too, at its calls."""
        if not self._sites:
            raise UserError("the interventions were taken off by unload(); load them onto the base again")
        pairs = zip(self._handles, self._sites, strict=True) if self._handles else ()
        if not (self._handles and all(handle.id in module._forward_hooks for handle, module in pairs)):
            _remove(self._handles)
            for module, key in zip(self._sites, self.interventions, strict=True):
                self._handles.append(module.register_forward_hook(_Hook(self, key)))

    def _attach_anew(self) -> None:
        """Forgets handles that are another's, and takes the hooks off once this model is no more."""
        self._handles: list[RemovableHandle] = []
        weakref.finalize(self, _remove, self._handles).atexit = False
        if self._sites:
            self._attach()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy's, or a pickle's: the base has come with hooks of the original, which do nothing in it."""
        super().__setstate__(state)
        for handle in self._handles:
            handle.remove()
        self._attach_anew()

    def _edited(self, key: str, output: Any) -> Any:
        """A module's output as the intervention of that name leaves it; None for as it is."""
        if self._mask is None:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        edited = self.interventions[key](hidden)
        if self._mask is not _EVERYWHERE:
            edited = torch.where(self._mask.to(hidden.device)[..., None], edited, hidden)
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    @contextmanager
    def intervening(self, mask: torch.Tensor | None) -> Iterator[None]:
        """Within it interventions act where ``mask: (batch or 1, position or 1)`` is true."""
        self._attach()
        before, self._mask = self._mask, mask
        try:
            yield
        finally:
            self._mask = before

    def _remove_forward_hooks(self) -> None:
        """pyvene clears every hook of the base before its calls; here hooks are persistent, and others' not ours."""

    def unload(self) -> PreTrainedModel:
        """Takes the interventions off and returns the base model."""
        _remove(self._handles)
        self._sites.clear()
        return self.model

    @property
    def device(self) -> torch.device:
        """The base's: where prompts go."""
        device: torch.device = self.model.device
        return device

    @property
    def hf_device_map(self) -> Any:
        """The base's, where it lies on several devices: by it a trainer sees that it must stay there."""
        return self.model.hf_device_map

    # --- running ------------------------------------------------------------------------------------------------

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        intervention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The base's forward pass with interventions.

        Args:
            input_ids: ``(batch, position)``.
            attention_mask: ``(batch, position)``.
            intervention_mask: Boolean ``(batch or 1, position)``, true where interventions act. May be left out by
                adapters that act on all positions.
            **kwargs: What else the base takes (``labels``, ``position_ids``, ``inputs_embeds``, …).

        Returns:
            The base's output.
        """
        if isinstance(input_ids, Mapping):
            raise UserError("forward takes the base's own arguments, as in model(**prompt); got pyvene's dictionary")
        self._attach()
        if intervention_mask is None:
            if self.prefix_config.positions != "all":
                raise UserError(
                    f"the adapter acts on {self.prefix_config.positions} positions; forward needs an intervention_mask"
                    " to know them (reft_math.data.positions.intervention_mask)"
                )
            intervention_mask = _EVERYWHERE
        with self.intervening(intervention_mask):
            return self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def generate(  # type: ignore[override]
        self,
        inputs: torch.Tensor | None = None,
        gate: Gate | str | None = None,
        handoff: Handoff = "base",
        input_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The base's ``generate`` with interventions while the gate is open.

        Args:
            inputs, input_ids: Prompts, ``(batch, position)``, padded on the left; one of the two names.
            gate: A gate, or its text: ``kl:NATS``, ``tokens:N``, ``always``, ``prompt`` or ``off``; the adapter's own
                by default.
            handoff: ``base`` goes on as the base that has read prompt and prefix itself, ``keep`` from the cache that
                the interventions have changed.
            **kwargs: What the base's ``generate`` takes. With ``tokenizer`` it stops where completions with the prompt
                template of the adapter end, unless ``eos_token_id`` and ``stopping_criteria`` say otherwise.

        Returns:
            What the base's ``generate`` returns: prompts and completions, padded on the right; with
            ``return_dict_in_generate`` a `GatedOutput`, which holds each row's divergence and closing position.
        """
        prompts = inputs if input_ids is None else input_ids
        if isinstance(prompts, Mapping):
            raise UserError(
                "generate takes the base's own arguments, as in generate(**prompt); got pyvene's dictionary"
            )
        self._attach()
        if prompts is None or (inputs is not None and input_ids is not None):
            raise UserError("generate needs prompts, as inputs or as input_ids; got none, or both")
        if not isinstance(gate, Gate):
            gate = parse_gate(self.gate if gate is None else gate)
        tokenizer, template = kwargs.get("tokenizer"), self.prefix_config.template
        if tokenizer is not None and template is not None and kwargs.get("generation_config") is None:
            kwargs = {**endings(self.model, tokenizer, template), **kwargs}
        with parametrize.cached():  # LoReFT's R once a generation
            return generate_with_gate(self.model, prompts, self, gate, handoff, **kwargs)

    @property
    def positions(self) -> Positions:
        """Where the interventions act."""
        return self.prefix_config.positions

    @property
    def gate(self) -> str:
        """The gate the adapter is meant to be decoded with."""
        return self.prefix_config.gate

    @contextmanager
    def decoding(self, prompt_length: int, positions: Positions | None = None) -> Iterator[None]:
        """Within it every forward pass of the base is intervened on: columns before ``prompt_length`` as prompt."""
        positions = positions or self.positions

        def set_mask(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            cache = kwargs.get("past_key_values")
            first = 0 if cache is None else int(cache.get_seq_length())
            tokens = args[0] if args else kwargs.get("input_ids")
            tokens = kwargs["inputs_embeds"] if tokens is None else tokens
            columns = torch.arange(first, first + tokens.shape[1], device=tokens.device)
            self._mask = intervention_mask(columns[None] >= prompt_length, positions)

        handle = self.model.register_forward_pre_hook(set_mask, with_kwargs=True)
        try:
            with self.intervening(None):
                yield
        finally:
            handle.remove()

    # --- training -----------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> PrefixReftModel:
        """As every module's; pyvene's own reaches the base only and returns nothing."""
        return nn.Module.train(self, mode)  # type: ignore[return-value]

    def eval(self) -> PrefixReftModel:
        return self.train(False)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As every module's; pyvene's own takes no argument."""
        nn.Module.zero_grad(self, set_to_none)

    def get_output_embeddings(self) -> nn.Module:
        layer: nn.Module = self.model.get_output_embeddings()
        return layer

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """As the base's, and the recomputation in the backward pass sees the mask of its forward pass."""
        settings = {
            **(gradient_checkpointing_kwargs or {}),
            "use_reentrant": False,
            "context_fn": self._recomputing,  # a method, which a copy of the model has of its own
        }
        if hasattr(self.model, "activation_checkpointing_enable"):  # the method's name from transformers 5.23 on
            self.model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings, **options)
        else:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings, **options)

    def _recomputing(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), self.intervening(self._mask)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """`gradient_checkpointing_enable` under the name that transformers 5.23 and later call."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, **options)

    def gradient_checkpointing_disable(self) -> None:
        self.model.gradient_checkpointing_disable()

    def biases(self) -> dict[int, torch.Tensor]:
        """``b`` by layer: RED's and a bias's ``(width,)``, the others' ``(rank,)``."""
        return {layer: intervention.bias for layer, intervention in self.by_layer()}

    def scales(self) -> dict[int, torch.Tensor]:
        """RED's ``s`` by layer; empty for the others, which have none."""
        return {layer: module.scale for layer, module in self.by_layer() if isinstance(module, RedIntervention)}

    def by_layer(self) -> Iterator[tuple[int, Any]]:
        """Layers and their interventions."""
        for representation, intervention in zip(self.config.representations, self.interventions.values(), strict=True):
            yield representation.layer, intervention

    # --- files --------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Writes safetensors, ``reft_config.json``, a model card and, beside them, the layout stock pyvene loads.

        A card that is in the folder already keeps its text.
        """
        checkpoint.save(folder, self.prefix_config, self.interventions)
        write_adapter_card(Path(folder))
        with contextlib.redirect_stdout(io.StringIO()):  # pyvene prints that the folder exists
            write_files(Path(folder), lambda aside: super(PrefixReftModel, self).save(str(aside)))

    def load_weights(self, folder: str | Path) -> None:
        """Puts a saved adapter's parameters into this model's interventions."""
        checkpoint.load_weights(folder, self.interventions)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, model: PreTrainedModel, revision: str | None = None
    ) -> PrefixReftModel:
        """Loads an adapter from a folder or the hub onto its base.

        Raises:
            UserError: No adapter there, or one that does not fit the model.
        """
        folder = fetch(source, CONFIG_NAME, revision)
        reft_model = get_prefix_reft_model(model, PrefixReftConfig.from_pretrained(folder))
        reft_model.load_weights(folder)
        reft_model.interventions.eval()  # as transformers does; dropout waits for `train`
        return reft_model

    @classmethod
    def load(cls, *args: Any, **kwargs: Any) -> PrefixReftModel:
        """`from_pretrained`: pyvene's own imports whatever class a folder's ``config.json`` names."""
        return cls.from_pretrained(*args, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> CommitInfo:
        """Saves to the hub; keyword arguments as in `reft_math.hub.push`."""
        return push(self.save_pretrained, repo_id, **kwargs)
