"""A base model with interventions that stay hooked in and act where a mask says."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Self

import pyreft
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from interventions.gates import Gate, parse_gate
from interventions.generation import Handoff, generate_with_gate
from interventions.positions import Positions, intervention_mask
from interventions.red import RedIntervention
from interventions.sites import site_device, site_module
from reft_math.errors import UserError

_EVERYWHERE = torch.ones((), dtype=torch.bool)  # a mask known to be true without reading it


class _Hook:
    """A module's forward hook. It keeps no model alive, and in a copy of the base alone it does nothing."""

    def __init__(self, owner: HookedReftModel | None = None, key: str = "") -> None:
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


class HookedReftModel(pyreft.ReftModel):
    """A `pyreft.ReftModel` whose interventions act through persistent hooks, by row and position.

    It differs from its parent only in how it runs: configuration and interventions are pyvene's. `forward` takes the
    base's arguments and an ``intervention_mask``; `generate` takes the base's arguments and a ``gate``. Outside these
    two calls the hooks do nothing, so the base model itself stays usable, with its logits unchanged to the last bit,
    and hooks set by other code stay in place.

    Args:
        config: pyvene's, with an intervention for each layer.
        model: The frozen base.
        site: A name from `interventions.sites`.
    """

    def __init__(self, config: pyreft.ReftConfig, model: PreTrainedModel, site: str) -> None:
        super().__init__(config, model)
        self._mask: torch.Tensor | None = None
        self._sites: list[nn.Module] = []
        for representation, intervention in zip(self.config.representations, self.interventions.values(), strict=True):
            self._sites.append(site_module(model, site, representation.layer))
            device = site_device(model, site, representation.layer)
            if device.type != "meta":  # a base that is yet to be sharded has no weights there
                intervention.to(device)
        self._attach_anew()
        # pyvene keeps the modules themselves in its config, which loggers write as JSON.
        self.config.representations = [item._replace(intervention=None) for item in self.config.representations]
        self.config.intervention_types = [str(type(intervention)) for intervention in self.interventions.values()]

    @property
    @abstractmethod
    def positions(self) -> Positions:
        """The positions where the interventions act."""

    @property
    @abstractmethod
    def gate(self) -> str:
        """The gate that `generate` uses by default."""

    # --- the hooks ----------------------------------------------------------------------------------------------

    def _attach(self) -> None:
        """Adds missing hooks: a stock pyvene model on the same base clears all hooks, these included, at each call."""
        if not self._sites:
            raise UserError("the interventions were taken off by unload(); load them onto the base again")
        pairs = zip(self._handles, self._sites, strict=True) if self._handles else ()
        if not (self._handles and all(handle.id in module._forward_hooks for handle, module in pairs)):
            _remove(self._handles)
            for module, key in zip(self._sites, self.interventions, strict=True):
                self._handles.append(module.register_forward_hook(_Hook(self, key)))

    def _attach_anew(self) -> None:
        """Drops handles copied from another model, and removes the hooks once this model is deleted."""
        self._handles: list[RemovableHandle] = []
        weakref.finalize(self, _remove, self._handles).atexit = False
        if self._sites:
            self._attach()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a copy or a pickle, whose base comes with the original's hooks; these do nothing in it."""
        super().__setstate__(state)
        for handle in self._handles:
            handle.remove()
        self._attach_anew()

    def _edited(self, key: str, output: Any) -> Any:
        """Returns a module's output as edited by the intervention of that name; None leaves the output unchanged."""
        if self._mask is None:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        edited = self.interventions[key](hidden)
        if self._mask is not _EVERYWHERE:
            edited = torch.where(self._mask.to(hidden.device)[..., None], edited, hidden)
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    @contextmanager
    def intervening(self, mask: torch.Tensor | None) -> Iterator[None]:
        """Lets interventions act where ``mask: (batch or 1, position or 1)`` is true."""
        self._attach()
        before, self._mask = self._mask, mask
        try:
            yield
        finally:
            self._mask = before

    def _remove_forward_hooks(self) -> None:
        """Does nothing: pyvene would clear every hook of the base, including these and those set by other code."""

    def unload(self) -> PreTrainedModel:
        """Removes the interventions and returns the base model."""
        _remove(self._handles)
        self._sites.clear()
        return self.model

    @property
    def device(self) -> torch.device:
        """The base's device, where prompts go."""
        device: torch.device = self.model.device
        return device

    @property
    def hf_device_map(self) -> Any:
        """The device map of a base spread over several devices, from which a trainer sees that it must not move it."""
        return self.model.hf_device_map

    # --- running ------------------------------------------------------------------------------------------------

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        intervention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Runs the base's forward pass with interventions.

        Args:
            input_ids: ``(batch, position)``.
            attention_mask: ``(batch, position)``.
            intervention_mask: Boolean ``(batch or 1, position)``, true where interventions act. May be left out by
                adapters that act on all positions.
            **kwargs: The base's other arguments (``labels``, ``position_ids``, ``inputs_embeds``, …).

        Returns:
            The base's output.
        """
        if isinstance(input_ids, Mapping):
            raise UserError("forward takes the base's own arguments, as in model(**prompt); got pyvene's dictionary")
        self._attach()
        if intervention_mask is None:
            if self.positions != "all":
                raise UserError(
                    f"the adapter acts on {self.positions} positions; forward needs an intervention_mask"
                    " to know them (interventions.positions.intervention_mask)"
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
        """Runs the base's ``generate`` with interventions while the gate is open.

        Args:
            inputs, input_ids: Prompts, ``(batch, position)``, padded on the left; one of the two names.
            gate: A gate, or its text: ``kl:NATS``, ``tokens:N``, ``always``, ``prompt`` or ``off``; the adapter's own
                by default.
            handoff: ``base`` goes on with the base, which has read prompt and prefix itself; ``keep`` goes on from the
                cache that the interventions have changed.
            **kwargs: Arguments of the base's ``generate``.

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
        with parametrize.cached():  # LoReFT's R once a generation
            return generate_with_gate(self.model, prompts, self, gate, handoff, **kwargs)

    @contextmanager
    def decoding(self, prompt_length: int, positions: Positions | None = None) -> Iterator[None]:
        """Lets interventions act in every forward pass of the base; columns before ``prompt_length`` are the prompt."""
        positions = positions or self.positions

        def set_mask(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            cache = kwargs.get("past_key_values")
            first = 0 if cache is None else int(cache.get_seq_length())
            tokens = args[0] if args else kwargs.get("input_ids")
            tokens = kwargs["inputs_embeds"] if tokens is None else tokens
            columns = torch.arange(first, first + tokens.shape[1], device=tokens.device)
            self._mask = intervention_mask(columns[None] - prompt_length, positions)

        handle = self.model.register_forward_pre_hook(set_mask, with_kwargs=True)
        try:
            with self.intervening(None):
                yield
        finally:
            handle.remove()

    # --- training -----------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Sets the mode like any module; pyvene's own method sets the base's only and returns nothing."""
        return nn.Module.train(self, mode)  # type: ignore[return-value]

    def eval(self) -> Self:
        return self.train(False)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears gradients like any module; pyvene's own method takes no argument."""
        nn.Module.zero_grad(self, set_to_none)

    def get_output_embeddings(self) -> nn.Module:
        layer: nn.Module = self.model.get_output_embeddings()
        return layer

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Enables the base's checkpointing; recomputation in the backward pass uses the mask of the forward pass."""
        settings = {
            **(gradient_checkpointing_kwargs or {}),
            "use_reentrant": False,
            "context_fn": self._recomputing,  # a method, so that a copy of the model calls its own
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
        """Calls `gradient_checkpointing_enable`; transformers 5.23 and later use this name."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, **options)

    def gradient_checkpointing_disable(self) -> None:
        self.model.gradient_checkpointing_disable()

    def biases(self) -> dict[int, torch.Tensor]:
        """Returns ``b`` by layer: ``(width,)`` for RED and bias, ``(rank,)`` for the others."""
        return {layer: intervention.bias for layer, intervention in self.by_layer()}

    def scales(self) -> dict[int, torch.Tensor]:
        """Returns RED's ``s`` by layer; empty for the others, which have no scale."""
        return {layer: module.scale for layer, module in self.by_layer() if isinstance(module, RedIntervention)}

    def by_layer(self) -> Iterator[tuple[int, Any]]:
        """Yields each layer and its intervention."""
        for representation, intervention in zip(self.config.representations, self.interventions.values(), strict=True):
            yield representation.layer, intervention
