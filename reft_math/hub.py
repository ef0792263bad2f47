"""Adapters by folder or hub id, and to the hub."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from reft_math.errors import UserError


def fetch(source: str | Path, config_name: str, revision: str | None = None) -> Path:
    """The local folder of an adapter, known by its config file, that is named by a folder or a hub id.

    Raises:
        UserError: Neither a folder with an adapter nor a hub repository that can be reached.
    """
    folder = Path(source)
    if not folder.is_dir():
        if folder.exists() or folder.is_absolute() or len(folder.parts) > 2:  # ids have two parts at most
            raise UserError(f"an adapter is a folder or a hub id; there is no folder {source}")
        try:
            folder = Path(snapshot_download(str(source), revision=revision))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"an adapter is a folder or a hub id; there is no folder {source}, and no such repository within reach"
                f" ({reason})"
            ) from None
    if not (folder / config_name).is_file():
        inside = next((path.parent for path in sorted(folder.glob(f"*/{config_name}"))), None)
        hint = f"did you mean {inside}?" if inside else "was it saved by save_pretrained?"
        raise UserError(f"adapter {str(source)!r} holds no {config_name}; {hint}")
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
