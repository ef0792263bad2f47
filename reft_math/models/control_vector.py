"""Writes a bias at ``block`` as a control vector of llama.cpp: a GGUF file that its programs add at every token."""

from __future__ import annotations

from pathlib import Path

from interventions.gates import PromptOnly, parse_gate
from reft_math.errors import UserError
from reft_math.files.atomic import atomic_path
from reft_math.models.adapter import PrefixReftModel
from reft_math.models.config import PrefixReftConfig

ARCHITECTURE = "controlvector"


def write_control_vector(reft_model: PrefixReftModel, path: Path, every_token: bool = False) -> None:
    """Writes ``direction.l = b_l``, with which llama.cpp computes ``h + b_l`` behind block ``l``, prompt included.

    Blocks are counted from 0, and llama.cpp has no direction for the first. One tensor a layer, ``(width,)`` in float32
    as the adapter keeps it, so that nothing is rounded; layers that are left out are left alone.

    Args:
        reft_model: Biases at ``block`` of any base, whose weights are not read.
        path: Path of the file.
        every_token: Also write an adapter whose own gate is ``prompt``.

    Raises:
        UserError: As `check_exportable`, or the package gguf is not installed.
    """
    try:
        from gguf import GGUFWriter
    except ImportError:
        raise UserError(
            "a control vector is written by the package gguf, which is not installed: uv sync --extra gguf"
        ) from None
    check_exportable(reft_model.prefix_config, every_token)
    with atomic_path(path) as aside:
        writer = GGUFWriter(str(aside), ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", reft_model.model.config.get_text_config().model_type)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(reft_model.prefix_config.layers))
        for layer, intervention in reft_model.by_layer():
            writer.add_tensor(f"direction.{layer}", intervention.bias.detach().float().cpu().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def check_exportable(config: PrefixReftConfig, every_token: bool = False) -> None:
    """Raises `UserError` for adapters that no control vector can hold."""
    if (config.intervention, config.site) != ("bias", "block"):
        raise UserError(
            f"a control vector is a bias at block; the adapter is {config.intervention} at {config.site}:"
            " train/merge_adapter.py may fold it into weights"
        )
    if isinstance(config.layers, tuple) and 0 in config.layers:
        raise UserError(
            "llama.cpp's control vectors begin at layer 1; the adapter acts on layer 0 too: train it with --layers"
            " from 1 on, or fold it into weights by train/merge_adapter.py"
        )
    if config.positions != "all":
        raise UserError(f"llama.cpp acts at every token; the adapter acts on {config.positions} positions only")
    if isinstance(parse_gate(config.gate), PromptOnly) and not every_token:
        raise UserError(
            "llama.cpp acts at every token, and the adapter's gate is prompt, which leaves generated tokens alone;"
            " --every-token (from Python every_token=True) writes it all the same"
        )
