"""What the front end of an engine knows of adapters, and how it calls the workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interventions.gates import Gate, PromptOnly, parse_gate
from interventions.positions import BEHIND_PROMPTS, Positions
from reft_math.errors import UserError
from reft_math.models.card import parameters_sha256
from reft_math.models.config import ADAPTER_CONFIG, PrefixReftConfig
from reft_math.models.hub import fetch

WORKER = "reft_math.engines.vllm.worker.ReftWorker"


@dataclass(frozen=True)
class Loaded:
    """A loaded adapter.

    Attributes:
        name: What requests call it.
        parameters: `parameters_sha256` of its files.
        positions: Where it acts.
        gate: Its own gate.
    """

    name: str
    parameters: str
    positions: Positions
    gate: str


def loaded(name: str, source: str | Path, revision: str | None = None) -> Loaded:
    """Reads an adapter's configuration and checksum from a folder or the hub."""
    folder = Path(fetch(source, ADAPTER_CONFIG, revision))
    config = PrefixReftConfig.from_pretrained(folder)
    return Loaded(name, parameters_sha256(folder), config.positions, config.gate)


def gate_of(adapters: Mapping[str, Loaded], name: str, gate: Gate | str | None) -> Gate:
    """Returns the gate that a request asks for, by default the adapter's own.

    Raises:
        UserError: The adapter is not loaded, or does not go with the gate.
    """
    if name not in adapters:
        raise UserError(f"a request's adapter must be a loaded one ({', '.join(adapters) or 'none is'}); got {name!r}")
    adapter = adapters[name]
    parsed = gate if isinstance(gate, Gate) else parse_gate(adapter.gate if gate is None else gate)
    if isinstance(parsed, PromptOnly) and adapter.positions in BEHIND_PROMPTS:
        raise UserError(
            f"gate 'prompt' is for adapters that act on the prompt; {name} acts on {adapter.positions} positions"
        )
    return parsed


def first_of(results: Sequence[Any]) -> Any:
    """Returns the first worker's answer that is one, of those of all."""
    return next((result for result in results if result is not None), None)
