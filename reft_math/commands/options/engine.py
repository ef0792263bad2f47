"""Settings of the server that continues where the interventions end. Light to import: ``--help`` waits for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from reft_math.commands.options.loading import LoadingOptions
from reft_math.errors import UserError, require


@dataclass(frozen=True)
class EngineOptions(LoadingOptions):
    """Options for an engine with the base."""

    engine: str | None = field(
        default=None,
        metadata={"help": "Server with the base (http://host:port/v1) that continues once the gate has closed."},
    )
    engine_model: str | None = field(default=None, metadata={"help": "The base's name on the server (its only model)."})
    engine_concurrency: int = field(default=32, metadata={"help": "Number of concurrent requests."})
    engine_timeout: float = field(
        default=600.0, metadata={"help": "Seconds to wait for the server before asking again."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "engine_concurrency", lambda value: value >= 1, "at least 1")
        require(self, "engine_timeout", lambda value: 0 < value < math.inf, "positive and finite")
        if self.engine is None and self.engine_model is not None:
            raise UserError("--engine-model names the base on an engine; pass --engine too, or leave it out")
        if self.engine is not None:
            _check_address(self.engine)


def _check_address(engine: str) -> None:
    """Refuses an address that holds a secret, since it is recorded with the results. The message does not repeat it."""
    if any(mark in engine for mark in "@?#"):
        raise UserError("--engine is recorded with the results; put the key in OPENAI_API_KEY, not in the address")
    try:
        parts = urlsplit(engine)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise UserError("--engine must be the address of a server, such as http://localhost:8000/v1; it is none")
