"""Settings that every evaluation command has. Light to import: ``--help`` waits for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from reft_math.errors import require


@dataclass(frozen=True)
class EvaluationOptions:
    """Model, adapter, decoding and data.

    None stands for what the help text says in brackets; results hold the resolved value.
    """

    FREE_ON_RESUME: ClassVar[frozenset[str]] = frozenset({"batch_size"})

    model: str | None = field(
        default=None, metadata={"help": "Base: hub id, folder, or 'arithmetic' (the adapter's base; arithmetic)."}
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model on the hub."})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "Of the base's weights; auto is the checkpoint's own."}
    )
    adapter: str | None = field(
        default=None, metadata={"help": "Adapter: folder or hub id (none: the base on its own)."}
    )
    gate: str | None = field(default=None, metadata={"help": "off, always, or tokens:N (the adapter's own)."})
    template: str | None = field(
        default=None,
        metadata={"help": "Prompt: auto, chat, plain, either with -step-by-step or -boxed (the adapter's; auto)."},
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder with <dataset>/<split>.jsonl instead of the hub."}
    )
    limit: int | None = field(default=None, metadata={"help": "First problems only (all; arithmetic 500)."})
    batch_size: int = field(default=16, metadata={"help": "Problems a batch."})
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "Longest completion (512; arithmetic 80, math500 1024)."}
    )
    output_dir: str = field(default="results/evaluation", metadata={"help": "Records and results go here."})
    resume: bool = field(default=False, metadata={"help": "Go on where a stopped run left off."})
    overwrite: bool = field(default=False, metadata={"help": "Delete the output folder's run and start anew."})

    def __post_init__(self) -> None:
        for name in ("limit", "batch_size", "max_new_tokens"):
            require(self, name, lambda value: value is None or value >= 1, "at least 1")
