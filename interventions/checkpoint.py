"""Adapter files: ``reft_model.safetensors`` and ``reft_config.json``, on disk and on the hub."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from interventions.config import CONFIG_NAME, PrefixReftConfig
from reft_math.errors import UserError

WEIGHTS_NAME = "reft_model.safetensors"


def save(folder: str | Path, config: PrefixReftConfig, interventions: nn.ModuleDict) -> None:
    """Writes configuration and parameters; the folder is made where missing."""
    config.save_pretrained(folder)
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in interventions.state_dict().items()}
    save_file(tensors, Path(folder) / WEIGHTS_NAME, metadata={"format": "pt"})


def load_weights(folder: str | Path, interventions: nn.ModuleDict) -> None:
    """Reads parameters into interventions of the same layers and shapes.

    Raises:
        UserError: The file is missing or damaged, or its names or shapes are not the interventions'.
    """
    path = Path(folder) / WEIGHTS_NAME
    try:
        interventions.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} does not hold this adapter's parameters: {reason}") from None


def fetch(source: str | Path, revision: str | None = None, config_name: str = CONFIG_NAME) -> Path:
    """The local folder of an adapter, known by its config file, that is named by a folder or a hub id.

    Raises:
        UserError: Neither a folder with an adapter nor a hub repository that can be reached.
    """
    if Path(source).is_dir():
        folder = Path(source)
    else:
        try:
            folder = Path(snapshot_download(str(source), revision=revision))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"adapter {str(source)!r} is neither a folder nor a hub repository within reach ({reason})"
            ) from None
    if not (folder / config_name).is_file():
        raise UserError(f"adapter {str(source)!r} holds no {config_name}; was it saved by save_pretrained?")
    return folder


def push(
    save_pretrained: Callable[[Path], None], repo_id: str, *, private: bool | None = None, token: str | None = None
) -> str:
    """Uploads what ``save_pretrained`` writes; the repository is made where missing. Returns the commit's address."""
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(Path(folder))
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload adapter").commit_url)
