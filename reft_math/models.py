"""Base models and tokenizers by hub id, folder, or the name of the embedded one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from reft_math.data.templates import PromptTemplate
from reft_math.errors import UserError
from reft_math.processes import process_state

EMBEDDED_MODEL = "arithmetic"
EMBEDDED_FOLDER = Path(__file__).parent / "arithmetic" / "model"
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def lasting_name(name: str) -> str:
    """The name to save for a base: a folder's absolute path, so that it is found from other folders too."""
    return str(Path(name).resolve()) if name != EMBEDDED_MODEL and Path(name).is_dir() else name


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token (its end of sequence where it names none).

    Raises:
        UserError: No such model within reach.
    """
    tokenizer = _from_pretrained(AutoTokenizer, name, revision)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    name: str, revision: str | None = None, dtype: Dtype = "auto", random_seed: int | None = None
) -> PreTrainedModel:
    """The model, frozen use in mind: in evaluation mode, on this process's device.

    Args:
        name: Hub id, folder, or ``arithmetic`` for the embedded model.
        revision: Branch, tag or commit on the hub.
        dtype: Of the weights; ``auto`` is the checkpoint's own.
        random_seed: Draws weights anew, by the model's own initialisation; None for the checkpoint's.

    Raises:
        UserError: No such model within reach.
    """
    model = _from_pretrained(AutoModelForCausalLM, name, revision, dtype=dtype)
    if random_seed is not None:
        torch.manual_seed(random_seed)
        model = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype)
    model = model.eval().to(process_state().device)
    model.generation_config = _greedy(model.generation_config)
    return model


def load_skeleton(name: str, revision: str | None = None, dtype: Dtype = "auto") -> PreTrainedModel:
    """The model without its weights, none of which are read: modules, shapes and dtypes, on the meta device.

    ``auto`` is the dtype that the configuration names, float32 where it names none.

    Raises:
        UserError: No such model within reach.
    """
    config = _from_pretrained(AutoConfig, name, revision)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=(config.dtype or torch.float32) if dtype == "auto" else getattr(torch, dtype)
        )
    return model.eval()


def _from_pretrained(loader: Any, name: str, revision: str | None, **kwargs: Any) -> Any:
    source = str(EMBEDDED_FOLDER) if name == EMBEDDED_MODEL else name
    try:
        return loader.from_pretrained(source, revision=revision, **kwargs)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"model {name!r} must be {EMBEDDED_MODEL!r}, a folder with a transformers checkpoint, or a hub id within"
            f" reach; {reason}"
        ) from None


def _greedy(config: Any) -> Any:
    """The checkpoint's tokens, none of its sampling habits or penalties: results are greedy unless asked otherwise."""
    from transformers import GenerationConfig

    tokens = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return GenerationConfig(do_sample=False, **tokens)


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: PromptTemplate) -> list[int]:
    """Every token that ends a solution: the model's, the tokenizer's and the template's."""
    from_model = model.generation_config.eos_token_id
    from_model = from_model if isinstance(from_model, list) else [from_model]
    candidates = [*from_model, tokenizer.eos_token_id, template.end_token_id(tokenizer)]
    return sorted({int(token) for token in candidates if token is not None})
