"""Builds and loads regressors that train interventions, LoRA, or the whole model."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reft_math.commands.options.loading import LoadingOptions
from reft_math.errors import UserError
from reft_math.files.strict import read_object
from reft_math.files.tensors import read_parameters
from reft_math.models import load_model, load_tokenizer
from reft_math.models.adapter import PrefixReftModel, get_prefix_reft_model
from reft_math.models.base import LORA, check_vocabulary
from reft_math.models.config import PrefixReftConfig
from reft_math.models.hub import fetch
from reft_math.regression.config import REGRESSOR_CONFIG, RegressorConfig
from reft_math.regression.regressor import ADAPTER_FOLDER, MODEL_FOLDER, Intervening, Regressor, make_template

if TYPE_CHECKING:
    from peft import PeftModel

DEFAULT_SITES = {"red": "ffn_up", "bias": "ffn_up", "loreft": "block"}
DEFAULT_LORA_RANK = 8


def make_regressor(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: RegressorConfig,
    site: str | None = None,
    layers: str = "all",
    rank: int | None = None,
    dropout: float | None = None,
) -> Regressor:
    """Makes a regressor in which only ``config.tune``, the head and the rows of added tokens are trainable.

    Args:
        model: The base; changed in place.
        tokenizer: The base's tokenizer; changed in place if tokens are added.
        config: Settings of the prediction.
        site, layers: Where interventions act.
        rank: Rank of LoReFT or LoRA (4, 8).
        dropout: Dropout in training, of the model's layers that have it and of LoRA; None leaves the model's.

    Raises:
        UserError: The grid or the tuning does not fit the model.
    """
    if config.tune == "full":
        _check_trainable(model)
    template = make_template(config, tokenizer)
    check_vocabulary(model, tokenizer, template)
    config = replace(config, template=str(template))
    grid = config.make_grid(model, tokenizer, template)
    model.requires_grad_(config.tune == "full")
    if dropout is not None:
        _set_dropout(model, dropout)
    adapter: nn.Module | None = None
    if config.tune == "red" or config.tune == "bias" or config.tune == "loreft":
        reft_config = PrefixReftConfig(
            intervention=config.tune,
            site=site or DEFAULT_SITES[config.tune],
            layers=layers,
            rank=rank,
            base_model=config.base_model,
            base_revision=config.base_revision,
            template=config.template,
            versions=config.versions,
        )
        adapter = get_prefix_reft_model(model, reft_config)
    elif config.tune == "lora":
        adapter = _lora(model, rank or DEFAULT_LORA_RANK, dropout or 0.0, config.base_model)
    return Regressor(model, tokenizer, template, grid, config, adapter, _intervening(adapter))


def _check_trainable(model: PreTrainedModel) -> None:
    """Raises if steps of the base's own weights would come to nothing; warns where most of them would."""
    if model.dtype == torch.float16:
        raise UserError(
            "steps of the whole model underflow in float16; load it with --dtype float32, and --mixed-precision fp16"
        )
    if model.dtype == torch.bfloat16:
        warnings.warn(
            "most steps of the whole model are lost to rounding in bfloat16; --dtype float32 with"
            " --mixed-precision bf16 keeps them",
            stacklevel=3,
        )
    if getattr(model, "is_quantized", False):
        raise UserError(
            "quantised weights cannot be tuned; take --tune red, bias, loreft or lora, or leave --quantization out"
        )


def _lora(model: PreTrainedModel, rank: int, dropout: float, base_model: str | None) -> PeftModel:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, lora_dropout=dropout, target_modules="all-linear"
    )
    lora: PeftModel = get_peft_model(model, config)
    lora.peft_config["default"].base_model_name_or_path = base_model
    return lora


def _set_dropout(model: PreTrainedModel, dropout: float) -> None:
    """Sets the dropout of dropout layers, and of attention, which holds it as a number."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
        if isinstance(getattr(module, "attention_dropout", None), int | float):
            module.attention_dropout = dropout


def load_regressor(source: str | Path, revision: str | None = None, loading: LoadingOptions | None = None) -> Regressor:
    """Loads a regressor saved by its ``save_pretrained``, in evaluation mode.

    Args:
        source: Folder or hub id.
        revision: Branch, tag or commit on the hub.
        loading: Settings for loading the base.

    Raises:
        UserError: There is no regressor, its base cannot be loaded, or the two do not fit.
    """
    folder = fetch(source, REGRESSOR_CONFIG, revision)
    config = RegressorConfig.from_pretrained(folder)
    is_whole = config.tune == "full"
    base = str(folder / MODEL_FOLDER) if is_whole else str(config.base_model)
    base_revision = None if is_whole else config.base_revision
    tokenizer = load_tokenizer(base, base_revision)
    model = load_model(base, base_revision, loading, None if is_whole else config.random_seed)
    template = make_template(config, tokenizer)
    check_vocabulary(model, tokenizer, template)
    grid = config.make_grid(model, tokenizer, template)
    adapter: nn.Module | None = None
    if config.tune in DEFAULT_SITES:
        adapter = PrefixReftModel.from_pretrained(folder / ADAPTER_FOLDER, model)
    elif config.tune == "lora":
        adapter = _load_lora(model, folder / ADAPTER_FOLDER)
    regressor = Regressor(model, tokenizer, template, grid, config, adapter, _intervening(adapter))
    regressor.load_own(folder)
    return regressor.eval()


def _load_lora(model: PreTrainedModel, folder: Path) -> nn.Module:
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import CONFIG_NAME as PEFT_CONFIG_NAME
    from peft.utils import SAFETENSORS_WEIGHTS_NAME

    try:
        saved = read_parameters(folder / SAFETENSORS_WEIGHTS_NAME)
        if (kind := read_object(folder / PEFT_CONFIG_NAME).get("peft_type")) != LORA:
            raise ValueError(f"its peft_type is {kind!r}")
        adapter: nn.Module = PeftModel.from_pretrained(model, str(folder))
        asked_for = get_peft_model_state_dict(adapter, save_embedding_layers=False)
    except Exception as error:  # a damaged file can raise anything
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder} does not hold a LoRA adapter for this base: {reason}") from None
    if odd := sorted(saved.keys() ^ asked_for.keys()):
        raise UserError(
            f"{folder} does not hold a LoRA adapter for this base: {len(odd)} weights are missing or unknown, such as"
            f" {odd[0]}"
        )
    return adapter


def load_base(config: RegressorConfig, loading: LoadingOptions | None = None) -> Regressor:
    """Loads a regressor's untrained base, over the same grid, in evaluation mode.

    Raises:
        UserError: The base cannot be loaded, or the grid does not fit it.
    """
    base = str(config.base_model)
    tokenizer = load_tokenizer(base, config.base_revision)
    model = load_model(base, config.base_revision, loading, config.random_seed)
    loss = "raft" if config.head is not None else config.loss
    return make_regressor(model, tokenizer, replace(config, tune="none", loss=loss)).eval()


def _intervening(adapter: nn.Module | None) -> Intervening | None:
    """Returns the context in which interventions act; LoRA is in the model's own layers and needs no context."""
    return adapter.decoding if isinstance(adapter, PrefixReftModel) else None
