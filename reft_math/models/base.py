"""Loads base models and tokenizers by hub id, folder, or the name of the embedded model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    WEIGHTS_INDEX_NAME,
    cached_file,
    extract_commit_hash,
    find_adapter_config_file,
)

from reft_math.commands.options.loading import LoadingOptions
from reft_math.commands.processes import process_state
from reft_math.data.arithmetic import EMBEDDED_FOLDER, EMBEDDED_MODEL
from reft_math.data.stops import StopTexts
from reft_math.data.templates import PromptTemplate, encode_prompt, get_template
from reft_math.errors import UserError
from reft_math.files.strict import read_object
from reft_math.models.gguf_files import as_plain, check_digest, is_gguf, local_file
from reft_math.models.lora import put_lora_on
from reft_math.models.sharding import fsdp_requested

_PANIC = "PanicException"  # raised by Rust libraries; a BaseException that cannot be imported
LORA = "LORA"  # the only kind of peft adapter that can be read


def absolute_name(name: str) -> str:
    """Returns the name to save for a base: a folder's or file's absolute path, valid from any working folder."""
    is_local = name != EMBEDDED_MODEL and (Path(name).is_dir() or (is_gguf(name) and Path(name).is_file()))
    return str(Path(name).resolve()) if is_local else name


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Loads the model's tokenizer, with a padding token (the end of sequence if it names none).

    A peft adapter uses the tokenizer beside it, which may have its own chat template, or else its base's.

    Raises:
        UserError: No such model can be reached.
    """
    base = _base_of_lora(name, revision)
    if base is not None and not _has_tokenizer(name, revision):
        return load_tokenizer(base.name, base.revision)
    tokenizer = _from_pretrained(AutoTokenizer, name, revision)
    with _naming(name):  # invalid settings fail at their first use
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.pad_token_id is None:
            raise ValueError("its tokenizer must name a token for padding or the end of sequence; it names neither")
        tokenizer.decode([*tokenizer.encode("1"), *tokenizer.all_special_ids])
    return tokenizer


def load_model(
    name: str,
    revision: str | None = None,
    loading: LoadingOptions | None = None,
    random_seed: int | None = None,
    to_be_sharded: bool = False,
) -> PreTrainedModel:
    """Loads the model for frozen use: in evaluation mode, on this process's device unless told otherwise.

    Args:
        name: Hub id, folder, ``.gguf`` file, or ``arithmetic`` for the embedded model; a peft adapter's name loads its
            base with it. ``generate`` also stops at every token that ends a turn of the tokenizer's chat template.
        revision: Branch, tag or commit on the hub; a ``.gguf`` file's digest.
        loading: Dtype, quantisation, devices and attention, such as a command's options.
        random_seed: Seed of new random weights, by the model's own initialisation; None for the checkpoint's.
        to_be_sharded: Load for `reft_math.models.sharding.shard`: off the accelerator, empty but in the main process.

    Raises:
        UserError: No such model can be reached or loaded this way, or the launcher asks for FSDP but a whole model is
            needed.
    """
    base = _base_of_lora(name, revision)
    if base is not None:
        model = load_model(base.name, base.revision, loading, random_seed, to_be_sharded)
        put_lora_on(model, name, revision, base.name)
        model.config._commit_hash = base.adapter_commit  # belongs to the name under which the model was requested
        _learn_ends(model, name, revision)
        return model.eval()
    settings = _settings(loading or LoadingOptions())
    _check_sharding(settings, to_be_sharded)
    # transformers reads all weights in every process, whatever accelerate's settings (huggingface/transformers#43749).
    is_empty = to_be_sharded and not process_state().is_main_process
    placement = {"device_map": "meta"} if is_empty else {}
    model, found = _from_pretrained(
        AutoModelForCausalLM, name, revision, **settings, **placement, output_loading_info=True
    )
    if missing := sorted(found["missing_keys"]):  # transformers would draw them at random
        raise UserError(
            f"model {name!r} must have all of its weights; {len(missing)} are missing, such as {missing[0]}"
        )
    if is_gguf(name):
        model = as_plain(model, local_file(name, revision))
    if random_seed is not None:
        if "device_map" in settings:
            raise UserError("random weights are drawn whole, on one device; leave --quantization and --device-map out")
        torch.manual_seed(random_seed)
        model = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype)
    _keep_gradients(model)
    model = model.eval()
    if not (to_be_sharded or "device_map" in settings):  # otherwise accelerate has placed it
        model = model.to(process_state().device)
    model.generation_config = _greedy(model.generation_config)
    _learn_ends(model, name, revision)
    _check_positions_of(model)
    return model


def _check_sharding(settings: dict[str, Any], to_be_sharded: bool) -> None:
    """Raises if the launcher asks for FSDP and a whole model is needed, or a device map beside it."""
    if fsdp_requested() and not to_be_sharded:
        raise UserError(
            "only train/prefix_reft.py shards its base; this needs a whole model in every process: launch with"
            " configs/ddp.yaml or torchrun instead of FSDP"
        )
    if to_be_sharded and "device_map" in settings:
        raise UserError("FSDP spreads the base by itself, unquantised; leave --quantization and --device-map out")


def _keep_gradients(model: PreTrainedModel) -> None:
    """On a CPU bitsandbytes repacks weights at the first pass without gradients; afterwards there are no gradients."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _check_positions_of(model: PreTrainedModel) -> None:
    """Makes a model with learnt positions (GPT-2, OPT) refuse later ones, which would be an `IndexError`, or on a GPU
    end the process. A model with computed positions reads on, and transformers warns.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    others = [part for part in model.modules() if isinstance(part, nn.Embedding)]
    others = [part for part in others if part is not model.get_input_embeddings()]
    if limit is None or not any(part.num_embeddings in (limit, limit + 2) for part in others):  # OPT's start at 2
        return

    def check(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        ids, positions, cache = (kwargs.get(name) for name in ("input_ids", "position_ids", "past_key_values"))
        if positions is not None:
            length = int(positions.max()) + 1
        else:
            ids = args[0] if args else ids
            length = (0 if ids is None else ids.shape[1]) + (0 if cache is None else cache.get_seq_length())
        if length > limit:
            raise UserError(
                f"a text must have no more tokens than the model has positions; got token {length} of {limit}: leave"
                " long rows out, take a smaller --max-new-tokens or --k, or another --model"
            )

    model.register_forward_pre_hook(check, with_kwargs=True)


def load_skeleton(name: str, revision: str | None = None, loading: LoadingOptions | None = None) -> PreTrainedModel:
    """Loads the model without weights: modules, shapes and dtypes, on the meta device.

    Of ``loading`` only the dtype is used; ``auto`` is the configuration's, or else float32. For a peft adapter it loads
    the base.

    Raises:
        UserError: No such model can be reached.
    """
    base = _base_of_lora(name, revision)
    if base is not None:
        return load_skeleton(base.name, base.revision, loading)
    config = _from_pretrained(AutoConfig, name, revision)
    dtype = "auto" if loading is None else loading.dtype
    with _naming(name), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=(config.dtype or torch.float32) if dtype == "auto" else getattr(torch, dtype)
        )
    return model.eval()


def check_no_adapter(name: str, revision: str | None, purpose: str) -> None:
    """Raises `UserError` if the name is a peft adapter's: training all weights or LoRA needs a plain model."""
    base = _base_of_lora(name, revision)
    if base is not None:
        raise UserError(
            f"{purpose} needs a plain model; {name!r} is a peft adapter on {base.name!r}: name that, or merge the two"
            " by peft's merge_and_unload first"
        )


@dataclass(frozen=True)
class _Base:
    """A peft adapter's base, the base's revision, and the adapter's own commit if it came from the hub."""

    name: str
    revision: str | None
    adapter_commit: str | None


def _base_of_lora(name: str, revision: str | None) -> _Base | None:
    """Returns the base of a peft adapter; None if the name is a model's."""
    if name == EMBEDDED_MODEL or is_gguf(name):
        return None
    path = _peft_config_file(name, revision)
    if path is None:
        return None
    try:
        config = read_object(Path(path))
    except (OSError, ValueError) as error:
        raise UserError(f"peft adapter {name!r} must have readable settings; {path}: {_reason(error)}") from None
    base, base_revision = config.get("base_model_name_or_path"), config.get("revision")
    if not base or not isinstance(base, str) or not isinstance(base_revision, str | None):
        raise UserError(f"peft adapter {name!r} must name its base, base_model_name_or_path in {path}; it names none")
    if (kind := config.get("peft_type")) != LORA:
        raise UserError(f"peft adapter {name!r} must be {LORA}, for others may load further files; it is {kind!r}")
    if base != EMBEDDED_MODEL and _peft_config_file(base, base_revision) is not None:
        raise UserError(f"peft adapter {name!r} must be on a plain model; its base {base!r} is an adapter, too")
    return _Base(base, base_revision, extract_commit_hash(path, None))


def _peft_config_file(name: str, revision: str | None) -> str | None:
    try:
        path: str | None = find_adapter_config_file(name, revision=revision)
    except (OSError, ValueError):  # neither a folder nor reachable: loading reports it
        return None
    return path


def _has_tokenizer(name: str, revision: str | None) -> bool:
    found = cached_file(
        name,
        TOKENIZER_CONFIG_FILE,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found is not None


def _learn_ends(model: PreTrainedModel, name: str, revision: str | None) -> None:
    """Sets `end_token_ids` for ``generate``. A checkpoint may end a sequence and a turn with different tokens."""
    try:
        tokenizer = load_tokenizer(name, revision)
        ends = end_token_ids(model, tokenizer, get_template("auto", tokenizer))
    except UserError:  # no tokenizer, or a chat template that fails: code that needs it will report it
        return
    model.generation_config.eos_token_id = ends


def _settings(loading: LoadingOptions) -> dict[str, Any]:
    """Returns the arguments of `from_pretrained`."""
    settings: dict[str, Any] = {"dtype": loading.dtype}
    if loading.attn_implementation is not None:
        settings["attn_implementation"] = loading.attn_implementation
    if loading.device_map is not None:
        settings["device_map"] = loading.device_map
    if loading.quantization is not None:
        dtype = "bfloat16" if loading.dtype == "auto" else loading.dtype
        # It warns at every matrix product that it casts to float16.
        logging.getLogger("bitsandbytes.autograd").setLevel(logging.ERROR)
        config = BitsAndBytesConfig(
            load_in_8bit=loading.quantization == "8bit",
            load_in_4bit=loading.quantization == "4bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
        )
        place = {"device_map": {"": process_state().device}}
        settings = {**place, **settings, "dtype": dtype, "quantization_config": config}
    return settings


def _from_pretrained(loader: Any, name: str, revision: str | None, **kwargs: Any) -> Any:
    source = str(EMBEDDED_FOLDER) if name == EMBEDDED_MODEL else name
    with _naming(name):
        if is_gguf(name):
            path = local_file(name, revision)
            check_digest(path, revision)
            source, revision, kwargs = str(path.parent), None, {**kwargs, "gguf_file": path.name}
        _check_shards(Path(source))
        # If unset, transformers would ask at the terminal whether to run a checkpoint's own code.
        return loader.from_pretrained(source, revision=revision, trust_remote_code=False, **kwargs)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turns any error within it into a `UserError` that names this model."""
    try:
        yield
    except (torch.OutOfMemoryError, UserError):
        raise
    except BaseException as error:  # a damaged checkpoint can raise anything
        if not (isinstance(error, Exception) or type(error).__name__ == _PANIC):
            raise
        raise UserError(
            f"model {name!r} must be {EMBEDDED_MODEL!r}, a folder with a transformers checkpoint, a .gguf file, or a"
            f" hub id within reach; {_reason(error)}"
        ) from None


def _check_shards(folder: Path) -> None:
    """Raises `ValueError` if the index of a checkpoint in several files names one outside its folder."""
    for index in (folder / SAFE_WEIGHTS_INDEX_NAME, folder / WEIGHTS_INDEX_NAME):
        names = read_object(index)["weight_map"].values() if index.is_file() else ()
        outside = next((name for name in names if Path(name).name != name), None)
        if outside is not None:
            raise ValueError(f"{index} must name files of its own folder; it names {outside!r}")


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _greedy(config: Any) -> Any:
    """Keeps the checkpoint's tokens and drops its sampling and penalties: results are greedy unless asked otherwise."""
    from transformers import GenerationConfig

    tokens = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return GenerationConfig(do_sample=False, **tokens)


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: PromptTemplate) -> None:
    """Raises `UserError` if a token needed by texts, prompts, their end or padding has no embedding.

    A model may have more embeddings than tokens, and may lack one for an added token that no text uses.
    """
    embeddings = model.get_input_embeddings().weight.shape[0]
    ends = {template.end_token_id(tokenizer), int(tokenizer.pad_token_id)}
    used = {tokenizer.vocab_size - 1, *ends, *encode_prompt(template, "", tokenizer)}
    if max(used) >= embeddings:
        raise UserError(
            f"the model must have an embedding for each token of its tokenizer; it has {embeddings}, and the tokenizer"
            f" uses token {max(used)}: take the tokenizer that the model was trained with"
        )


def endings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recorded: str) -> dict[str, Any]:
    """Returns keyword arguments that make one call of ``generate`` stop where completions of a template end.

    Args:
        model, tokenizer: The base and its tokenizer.
        recorded: The template's name and version; a template that the tokenizer lacks gives no arguments.
    """
    try:
        template = get_template(recorded.partition("/")[0], tokenizer)
    except UserError:
        return {}
    stops = template.stops(tokenizer)[1]
    criteria = {"stopping_criteria": StoppingCriteriaList([StopTexts(stops, tokenizer)])} if stops else {}
    return {"eos_token_id": end_token_ids(model, tokenizer, template), **criteria}


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: PromptTemplate) -> list[int]:
    """Returns tokens that end a solution: the model's, tokenizer's and template's, and those that begin a next turn."""
    from_model = model.generation_config.eos_token_id
    from_model = from_model if isinstance(from_model, list) else [from_model]
    from_template = [template.end_token_id(tokenizer), *template.stops(tokenizer)[0]]
    candidates = [*from_model, tokenizer.eos_token_id, *from_template]
    return sorted({int(token) for token in candidates if token is not None})
