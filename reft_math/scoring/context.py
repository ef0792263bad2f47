"""An evaluation's inputs: a base, with or without an adapter, and how it completes problems."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from interventions.gates import AlwaysOn, PromptOnly, parse_gate
from interventions.generation import GatedOutput
from reft_math.commands.options.evaluation import EvaluationOptions, ModelOptions
from reft_math.commands.processes import claim
from reft_math.commands.provenance import provenance
from reft_math.data.arithmetic import EMBEDDED_MODEL
from reft_math.data.templates import PromptTemplate, get_template
from reft_math.decoding.completions import (
    Complete,
    CompletionSettings,
    Generate,
    complete,
    complete_by_engine,
    complete_in_engine,
)
from reft_math.decoding.engine import Engine, ServedAdapter
from reft_math.decoding.gate_sweep import GateSweep
from reft_math.errors import UserError
from reft_math.models import load_model, load_tokenizer
from reft_math.models.adapter import PrefixReftModel
from reft_math.models.base import check_vocabulary, end_token_ids
from reft_math.models.card import parameters_sha256
from reft_math.models.config import ADAPTER_CONFIG, PrefixReftConfig
from reft_math.models.hub import fetch
from reft_math.scoring.evaluate import (
    default_max_new_tokens,
)

Options = TypeVar("Options", bound=ModelOptions)


@dataclass(frozen=True)
class EvaluationContext:
    """A command's model, adapter and decoding settings, loaded and checked.

    Attributes:
        options: The command's resolved options.
        adapter: The adapter's configuration; None for the base alone.
        model: The base.
        reft_model: The base with the adapter's interventions, if there is one.
        decoding: Settings of prompts and stopping.
    """

    options: ModelOptions
    adapter: PrefixReftConfig | None
    model: PreTrainedModel
    reft_model: PrefixReftModel | None
    decoding: CompletionSettings

    def generate(self, gate: str) -> Generate:
        """Returns ``generate`` under a gate; the base's own without an adapter."""
        if self.reft_model is None:
            return self.model.generate  # type: ignore[no-any-return]
        return partial(self.reft_model.generate, gate=gate, handoff=self.options.handoff)

    def completer(self, gate: str) -> Complete:
        """Returns a function that completes questions under a gate."""
        return partial(complete, generate=self.generate(gate), decoding=self.decoding, device=self.model.device)

    def completers(self, gates: Sequence[str]) -> Callable[[str], Complete]:
        """Returns `completer` for each of these gates, which draws what they have in common once."""
        if self.reft_model is None or self.options.handoff != "base":
            return self.completer
        model = self.reft_model
        return GateSweep(model.generate, self.model.generate, self.decoding, self.model.device, gates).completer

    def claim(self, about: Mapping[str, Any], reft: str | None = None) -> Path:
        """Claims the output folder for a run on these rows and these adapters' parameters.

        Args:
            about: `about_problems` of the rows.
            reft: A second adapter.
        """
        adapters = {"adapter": self.options.adapter, "reft": reft}
        parameters = {name: _parameters(source) for name, source in adapters.items() if source is not None}
        return claim(self.options, {**about["fingerprints"], **parameters})

    def provenance(self) -> dict[str, Any]:
        """Returns the head of results."""
        return {
            **provenance(self.options),
            "base_commit": getattr(self.model.config, "_commit_hash", None),
            "adapter": None if self.adapter is None else dataclasses.asdict(self.adapter),
            "parameters": None if self.options.adapter is None else _parameters(self.options.adapter),
            "template": str(self.decoding.template),
            "opener": self.decoding.opener,
            "end_token_ids": self.decoding.end_token_ids,
            "stops": self.decoding.stops,
        }


def _parameters(adapter: str) -> str:
    return parameters_sha256(fetch(adapter, ADAPTER_CONFIG))


def load_setting(options: ModelOptions, dataset: str, opener: str = "") -> EvaluationContext:
    """Loads model, tokenizer and adapter, and takes settings that the options leave open from the adapter.

    Args:
        options: The command's settings.
        dataset: A name that `load_problems` knows.
        opener: Text with which every completion starts.
    """
    adapter = (
        None if options.adapter is None else PrefixReftConfig.from_pretrained(fetch(options.adapter, ADAPTER_CONFIG))
    )
    options = _resolve(options, adapter, dataset)
    assert options.model is not None  # resolved
    assert options.max_new_tokens is not None
    tokenizer = load_tokenizer(options.model, options.revision)
    template = get_template(str(options.template), tokenizer)
    _check_template(template, adapter)
    model = load_model(options.model, options.revision, options)
    check_vocabulary(model, tokenizer, template)
    reft_model = None
    if options.adapter is not None:
        reft_model = PrefixReftModel.from_pretrained(options.adapter, model).eval()
    decoding = CompletionSettings(
        tokenizer=tokenizer,
        template=template,
        end_token_ids=end_token_ids(model, tokenizer, template),
        max_new_tokens=options.max_new_tokens,
        opener=opener,
    )
    return EvaluationContext(options, adapter, model, reft_model, decoding)


def load_beside(setting: EvaluationContext, source: str) -> PrefixReftModel:
    """Loads another adapter on the setting's base, to show beside its own.

    Raises:
        UserError: It was trained on another base, or with other prompts.
    """
    assert setting.adapter is not None
    reft_model = PrefixReftModel.from_pretrained(source, setting.model).eval()
    ours, theirs = ((config.base_model, config.template) for config in (setting.adapter, reft_model.prefix_config))
    if ours != theirs:
        raise UserError(
            f"--reft is put beside --adapter, so it needs the same base and prompt template: {ours}; it has {theirs}"
        )
    return reft_model


def batch_completer(setting: EvaluationContext, options: EvaluationOptions) -> Complete:
    """Returns a function that completes under the setting's gate, with the options' sampling and engine."""
    gate = str(setting.options.gate)
    decoding = replace(setting.decoding, sampling=options.sampling)
    common = {"decoding": decoding, "device": setting.model.device}
    if options.engine_adapter is not None and gate != "off":
        assert setting.options.adapter is not None  # checked by the options
        served = ServedAdapter(options.engine_adapter, gate, _parameters(setting.options.adapter))
        whole = Engine.from_options(options, decoding.tokenizer, served)
        assert whole is not None
        return partial(complete_in_engine, decoding=decoding, engine=whole)
    if options.engine is not None and isinstance(parse_gate(gate), AlwaysOn | PromptOnly):
        raise UserError(f"--engine writes what the base does once a gate has closed; gate {gate} never hands over")
    engine = Engine.from_options(options, decoding.tokenizer)
    if engine is None:
        return partial(complete, generate=setting.generate(gate), **common)
    generate = setting.generate(gate) if gate != "off" else _draw_nothing
    return partial(complete_by_engine, generate=generate, engine=engine, **common)


def _draw_nothing(inputs: torch.Tensor, **_: Any) -> GatedOutput:
    """Draws nothing: a gate that is closed from the start leaves everything to the engine."""
    return GatedOutput(sequences=inputs, closing_positions=torch.zeros(len(inputs), dtype=torch.long))


def _resolve(options: Options, adapter: PrefixReftConfig | None, dataset: str) -> Options:
    """Takes base, gate and prompt template from the adapter unless told otherwise."""
    if adapter is None and options.gate not in (None, "off"):
        raise UserError(f"--gate {options.gate} opens an adapter's interventions; pass --adapter, or leave --gate out")
    if adapter is None and options.handoff != "base":
        raise UserError(f"--handoff {options.handoff} is what follows a gate; pass --adapter, or leave --handoff out")
    template, gate = "auto", "off"
    if adapter is None:
        model, revision = options.model or EMBEDDED_MODEL, options.revision
    else:
        model, revision = adapter.resolve_base(options.model, options.revision)
        template, gate = (adapter.template or "auto").partition("/")[0], adapter.gate
    return replace(
        options,
        model=model,
        revision=revision,
        gate=str(parse_gate(options.gate or gate)),
        template=options.template or template,
        max_new_tokens=options.max_new_tokens or default_max_new_tokens(dataset),
    )


def _check_template(template: PromptTemplate, adapter: PrefixReftConfig | None) -> None:
    """Refuses a template whose wording has changed since the adapter was trained."""
    trained_with = adapter.template if adapter is not None else None
    if trained_with and trained_with.partition("/")[0] == template.name and not template.is_recorded_as(trained_with):
        raise UserError(
            f"the adapter was trained with prompt template {trained_with}, this version has {template};"
            " choose another --template, or the version of reft-math that trained it"
        )
