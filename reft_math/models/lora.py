"""Puts LoRA adapters of other projects on their base through peft, with DoRA, trained token rows and the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from reft_math.errors import UserError
from reft_math.files.tensors import check_finite

if TYPE_CHECKING:
    from peft import LoraConfig

# Kinds that do not work, or not only, through the layers that peft puts into the model.
_UNSUPPORTED = {
    "alora_invocation_tokens": "aLoRA, which acts from an invocation text on",
    "arrow_config": "Arrow, which routes between further adapters",
    "layer_replication": "LoRA on a base whose layers are repeated",
}


def put_lora_on(model: PreTrainedModel, name: str, revision: str | None, base: str) -> None:
    """Puts an adapter's layers into the model.

    Args:
        model: The adapter's base.
        name: The adapter's folder or hub id.
        revision: The adapter's branch, tag or commit on the hub.
        base: The base's name in error messages.

    Raises:
        UserError: The adapter is of a kind that is not supported, damaged, or does not fit the base.
    """
    from peft import PeftConfig, PeftModel, load_peft_weights, set_peft_model_state_dict

    try:
        config: LoraConfig = PeftConfig.from_pretrained(name, revision=revision)  # type: ignore[assignment]
        config.inference_mode = True
        _check(config, name)
        tensors = load_peft_weights(name, device="cpu", revision=revision)
        check_finite(tensors, f"peft adapter {name!r}")
        _check_rows(model, config, tensors, name, base)
        found = set_peft_model_state_dict(PeftModel(model, config), tensors)
    except UserError:
        raise
    except KeyError as error:  # weights of modules that peft wraps whole: saved modules, token rows
        odd = [str(error.args[0]) if error.args else ""]
    except Exception as error:  # a damaged file can raise anything
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"peft adapter {name!r} does not fit its base {base!r}: {reason}") from None
    else:
        missing = [key for key in found.missing_keys if "lora_" in key]
        odd = sorted({*missing, *found.unexpected_keys})
    if odd:
        raise UserError(
            f"peft adapter {name!r} must hold the weights that its settings ask for; missing or unknown: {odd[0]}"
        )


def _check(config: Any, name: str) -> None:
    for setting, kind in _UNSUPPORTED.items():
        if getattr(config, setting, None) is not None:
            raise UserError(f"peft adapter {name!r} is {kind} ({setting}); that is not supported")


def _check_rows(model: PreTrainedModel, config: Any, tensors: dict[str, torch.Tensor], name: str, base: str) -> None:
    """Raises `UserError` if the adapter was trained on a base with another number of token embeddings."""
    rows = model.get_input_embeddings().weight.shape[0]
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    tables = [f".{path}." for path, module in model.named_modules() if module in ends]
    sizes = {
        tensor.shape[0]
        for key, tensor in tensors.items()
        if key.endswith(".weight") and ".lora_" not in key and any(path in key for path in tables)
    }
    indices = config.trainable_token_indices or []
    trained = [index for each in (indices.values() if isinstance(indices, dict) else [indices]) for index in each]
    if sizes - {rows}:
        raise UserError(
            f"peft adapter {name!r} has embeddings for {max(sizes - {rows})} tokens, and its base {base!r} for {rows}:"
            " resize the base as in training (resize_token_embeddings), save it, and name it in the adapter's"
            " base_model_name_or_path"
        )
    if trained and max(trained) >= rows:
        raise UserError(
            f"peft adapter {name!r} trains token {max(trained)}, and its base {base!r} has embeddings for {rows} tokens"
        )
