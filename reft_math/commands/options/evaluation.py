"""Settings of all evaluation commands. Light to import: ``--help`` waits for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from reft_math.commands.options.engine import EngineOptions
from reft_math.commands.options.loading import LoadingOptions
from reft_math.errors import UserError, require, require_temperature


@dataclass(frozen=True)
class DecoderOptions(LoadingOptions):
    """Options for the model, how it is loaded, the adapter and its gate.

    None stands for the default that the help text gives in brackets; results hold the resolved value.
    """

    model: str | None = field(
        default=None,
        metadata={"help": "Base: hub id, folder, .gguf file, or 'arithmetic' (the adapter's base; arithmetic)."},
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model on the hub."})
    adapter: str | None = field(default=None, metadata={"help": "Adapter: folder or hub id (the base alone)."})
    gate: str | None = field(
        default=None, metadata={"help": "kl:NATS[,min=N][,max=N], tokens:N, always, prompt or off (the adapter's own)."}
    )
    handoff: Literal["base", "keep"] = field(
        default="base",
        metadata={"help": "Cache to continue from once the gate has closed: the base's, or keep the adapter's."},
    )


@dataclass(frozen=True)
class ModelOptions(DecoderOptions):
    """Adds prompts, data and the length of completions to `DecoderOptions`."""

    template: str | None = field(
        default=None,
        metadata={
            "help": "Prompt: auto, chat, plain, either with -step-by-step or -boxed, chat… also with -thinking"
            " (the adapter's; auto)."
        },
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder with <dataset>/<split>.jsonl instead of the hub."}
    )
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "Longest completion (512; arithmetic 80, math500 1024)."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "max_new_tokens", lambda value: value is None or value >= 1, "at least 1")


@dataclass(frozen=True)
class RunOptions(ModelOptions):
    """Adds batches of problems and a folder of records to `ModelOptions`."""

    FREE_ON_RESUME: ClassVar[frozenset[str]] = frozenset({"batch_size"})

    limit: int | None = field(default=None, metadata={"help": "Use only the first N problems (all; arithmetic 500)."})
    batch_size: int = field(default=16, metadata={"help": "Completions per batch."})
    output_dir: str = field(default="results/evaluation", metadata={"help": "Records and results go here."})
    resume: bool = field(default=False, metadata={"help": "Resume a stopped run."})
    overwrite: bool = field(default=False, metadata={"help": "Delete the run in the output folder and start over."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("limit", "batch_size"):
            require(self, name, lambda value: value is None or value >= 1, "at least 1")


@dataclass(frozen=True)
class EvaluationOptions(EngineOptions, RunOptions):
    """Adds sampling and the engine to `RunOptions`."""

    samples: int = field(
        default=1, metadata={"help": "Completions per problem; from 2 on with pass@k and the majority vote."}
    )
    temperature: float | None = field(default=None, metadata={"help": "Sampling temperature (greedy decoding)."})
    top_p: float | None = field(default=None, metadata={"help": "Sample from the likeliest tokens of this mass (1)."})
    top_k: int | None = field(default=None, metadata={"help": "Sample from this many likeliest tokens (all)."})
    min_p: float | None = field(
        default=None, metadata={"help": "Sample from tokens at least this share as likely as the likeliest (0)."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the samples' random draws."})
    engine_adapter: str | None = field(
        default=None,
        metadata={"help": "The adapter's name on an engine that has gates itself (reft_math.engines.vllm.served)."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine_adapter is not None and (self.engine is None or self.adapter is None):
            raise UserError("--engine-adapter names --adapter's counterpart on --engine; pass both, or leave it out")
        for name in ("samples", "top_k"):
            require(self, name, lambda value: value is None or value >= 1, "at least 1")
        require_temperature(self)
        require(self, "top_p", lambda value: value is None or 0 < value <= 1, "in (0, 1]")
        require(self, "min_p", lambda value: value is None or 0 <= value <= 1, "in [0, 1]")
        needs = [name for name in ("top_p", "top_k", "min_p") if getattr(self, name) is not None]
        needs += ["samples"] if self.samples > 1 else []
        if needs and self.temperature is None:
            raise UserError(f"--{needs[0].replace('_', '-')} is for sampling; pass --temperature too, such as 0.7")
        if self.engine is not None and self.handoff != "base":
            raise UserError("--engine goes on as the base would; leave --handoff keep out, or --engine")

    @property
    def FREE_ON_RESUME(self) -> frozenset[str]:  # type: ignore[override]
        """Settings that may change on resume. Engine and batch size change samples, greedy ones only by rounding."""
        free = frozenset({"engine_concurrency", "engine_timeout"})
        return free if self.sampling else free | {"batch_size", "engine", "engine_model", "engine_adapter"}

    @property
    def sampling(self) -> dict[str, float | int]:
        """Returns sampling settings for ``generate``; empty means greedy. Nothing is cut off unless asked for."""
        if self.temperature is None:
            return {}
        return {
            "temperature": self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "top_k": self.top_k or 0,
            **({} if self.min_p is None else {"min_p": self.min_p}),
        }
