"""Settings for loading a base, in training and evaluation. Light to import: ``--help`` waits for it."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Literal

from reft_math.errors import UserError, require_one_process

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["8bit", "4bit"]
Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]
DeviceMap = Literal["auto", "balanced", "balanced_low_0", "sequential"]


@dataclass(frozen=True)
class LoadingOptions:
    """Options for loading the base: file, dtype, quantisation, devices and attention."""

    gguf_file: str | None = field(
        default=None,
        metadata={"help": "File to read if --model names a folder or hub repository of GGUF files."},
    )
    dtype: Dtype = field(default="auto", metadata={"help": "Dtype of the base's weights; auto: the checkpoint's own."})
    quantization: Quantization | None = field(
        default=None,
        metadata={"help": "Quantise the base's linear weights with bitsandbytes (not quantised)."},
    )
    device_map: DeviceMap | None = field(
        default=None,
        metadata={"help": "Spread the base's layers over all GPUs, and the rest over memory (one GPU)."},
    )
    attn_implementation: Attention | None = field(
        default=None, metadata={"help": "Implementation of the base's attention (transformers' choice)."}
    )

    def __post_init__(self) -> None:
        if self.gguf_file is not None:
            self._name_file(self.gguf_file)
        if self.device_map is not None:
            require_one_process("a run with --device-map")
        if self.quantization is not None and importlib.util.find_spec("bitsandbytes") is None:
            raise UserError(
                f"--quantization {self.quantization} needs the package bitsandbytes, which is not installed:"
                " uv sync --extra quantization"
            )

    def _name_file(self, file: str) -> None:
        """Turns ``--model M --gguf-file F`` into ``--model M/F``, the name that is used and recorded."""
        model = getattr(self, "model", None)
        if model is None or not file.endswith(".gguf"):
            raise UserError(
                f"--gguf-file names a .gguf file of the folder or hub repository given as --model; got {file}"
                f" of {model}"
            )
        object.__setattr__(self, "model", f"{model}/{file}")
        object.__setattr__(self, "gguf_file", None)
