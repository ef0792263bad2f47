"""Fetches adapters by folder or hub id, and pushes them to the hub."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, get_token, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from reft_math.errors import UserError
from reft_math.files.atomic import write_text
from reft_math.models.card import CARD_NAME, PLACE, read_card, update_card, with_license


def fetch(source: str | Path, config_name: str, revision: str | None = None) -> Path:
    """Returns the local folder of an adapter named by a folder or hub id, identified by its config file.

    Raises:
        UserError: The source is neither a folder with an adapter nor a reachable hub repository.
    """
    folder = Path(source)
    if not folder.is_dir():
        if folder.exists() or folder.is_absolute() or len(folder.parts) > 2:  # ids have two parts at most
            raise UserError(f"an adapter is a folder or a hub id; there is no folder {source}")
        try:
            folder = Path(snapshot_download(str(source), revision=revision))
        except RevisionNotFoundError:
            raise UserError(f"{source} is on the hub, but has no branch, tag or commit {revision or 'main'}") from None
        except (HTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise UserError(
                f"an adapter is a folder or a hub id; there is no folder {source}, and no such repository within reach"
                f" ({_reason(error)})"
            ) from None
    if not (folder / config_name).is_file():
        inside = next((path.parent for path in sorted(folder.glob(f"*/{config_name}"))), None)
        hint = f"did you mean {inside}?" if inside else "was it saved by save_pretrained?"
        if (folder / ADAPTER_CONFIG_NAME).is_file():
            hint = "it is peft's: pass it as the model"
        elif (folder / "delta_vector.pth").is_file() or next(folder.glob("intkey_*.bin"), None):
            hint = "it is another project's: train/import_checkpoint.py makes one of this project of it"
        raise UserError(f"adapter {str(source)!r} holds no {config_name}; {hint}")
    return folder


def push(
    save: Callable[[Path], None],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload with reft-math",
    create_pr: bool = False,
    license: str | None = None,
) -> CommitInfo:
    """Uploads a folder with its card. A card already in the repository keeps its text.

    Args:
        save: Function that writes the folder.
        repo_id: ``user/name``, or ``name`` for your own account; the repository is created if missing.
        private: Whether a created repository is private; None for the account's default.
        token: Token with the right to write; by default the one of the login.
        revision: Branch, created if missing (main).
        commit_message: First line of the commit message.
        create_pr: Open a pull request instead of committing to main.
        license: License for the card, by its name on the hub (``apache-2.0``); None leaves it unchanged.

    Returns:
        The commit, with its address as text and ``pr_url`` for a pull request.

    Raises:
        UserError: Nobody is logged in, or the hub refuses or cannot be reached.
    """
    if create_pr and revision is not None:
        raise UserError(f"a pull request goes to main; got create_pr and revision {revision}: leave one of them out")
    token = token or get_token()
    if token is None:
        raise UserError("pushing needs a token that may write; log in with hf auth login, or set HF_TOKEN")
    api = HfApi(token=token.strip())  # a token read from a file may end with a newline
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(folder)
        try:
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            _address_card(folder, _card_on_hub(api, repo_id, revision), repo_id, license)
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message,
                create_pr=create_pr,
            )
        except UserError:
            raise
        except (HTTPError, OSError, ValueError, RuntimeError) as error:  # RuntimeError wraps upload errors
            raise UserError(f"{repo_id} could not be pushed to {api.endpoint}: {_reason(error)}") from None


def _card_on_hub(api: HfApi, repo_id: str, revision: str | None) -> str | None:
    try:
        path = api.hf_hub_download(repo_id, CARD_NAME, revision=revision)
    except RemoteEntryNotFoundError:
        return None
    return read_card(Path(path).parent)


def _address_card(folder: Path, before: str | None, repo_id: str, license: str | None) -> None:
    """Adapts the folder's card to the repository."""
    card = read_card(folder)
    assert card is not None  # every save writes one
    card = update_card(before, card) if before else card
    card = with_license(card, license) if license else card
    write_text(folder / CARD_NAME, card.replace(PLACE, repo_id))


_REFUSALS = {
    401: "it does not know the token (401): log in with hf auth login, or set HF_TOKEN",
    403: "the token may not do that (403): take one with the right to write, or another repository",
}


def _reason(error: Exception) -> str:
    """Returns a failure in one line.

    For a failed request it gives only the kind of error: the client's message can quote headers that hold the token.
    """
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, RepositoryNotFoundError):
        return "not found, or private: then log in with hf auth login, or set HF_TOKEN"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        said = (error.server_message or error.response.reason_phrase).splitlines()
        return _REFUSALS.get(status) or " ".join([str(status), *said[:1]])
    if isinstance(error, HTTPError):
        return f"no connection ({type(error).__name__})"
    return " ".join(str(error).split())[:200] or type(error).__name__
