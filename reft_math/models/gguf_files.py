"""Reads bases in llama.cpp's GGUF format: ``folder/file.gguf``, or ``owner/repository/file.gguf`` on the hub.

transformers converts their weights to floats. Such a base has no commit that an adapter could name, so its revision
is the file's digest, ``sha256:…``: another file under the same name is refused, and the same file may move.
"""

from __future__ import annotations

import hashlib
import importlib.util
from functools import lru_cache
from pathlib import Path

from huggingface_hub import hf_hub_download
from transformers import PreTrainedModel

from reft_math.errors import UserError

_DIGEST = "sha256:"


def is_gguf(name: str) -> bool:
    """Returns whether a base's name is a GGUF file's."""
    return name.endswith(".gguf")


def local_file(name: str, revision: str | None = None) -> Path:
    """Returns the path of the file, downloaded from the hub if it is not on this machine.

    Raises:
        UserError: The package gguf is not installed.
        ValueError: There is no such file, and the name is not a hub name.
        OSError: The hub does not have the file.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError("a .gguf file is read by the package gguf, which is not installed: uv sync --extra gguf")
    path = Path(name)
    if path.is_file():
        return path
    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    if not (owner and repository and file) or path.parent.exists():
        raise ValueError(f"there is no file {name}")
    is_digest = revision is not None and revision.startswith(_DIGEST)
    return Path(hf_hub_download(f"{owner}/{repository}", file, revision=None if is_digest else revision))


def file_sha256(path: Path) -> str:
    """Returns ``sha256:…`` of the file."""
    status = path.stat()
    return _digest(path.resolve(), status.st_size, status.st_mtime_ns)


@lru_cache
def _digest(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return _DIGEST + hashlib.file_digest(file, "sha256").hexdigest()


def check_digest(path: Path, revision: str | None) -> None:
    """Raises `UserError` if the revision is a digest of another file."""
    if revision is not None and revision.startswith(_DIGEST) and file_sha256(path) != revision:
        raise UserError(
            f"{path} must be the file that the adapter was trained on, {revision}; its digest is {file_sha256(path)}:"
            " name another file, or this one with --model to put the adapter on it all the same"
        )


def as_plain(model: PreTrainedModel, path: Path) -> PreTrainedModel:
    """Removes the marks of quantisation: the weights are floats, and can be trained, merged and saved."""
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized, model.quantization_method = None, False, None
    model.config._commit_hash = file_sha256(path)
    return model
