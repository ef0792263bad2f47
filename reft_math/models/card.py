"""Model cards: a ``README.md`` of metadata for the hub, and text that is written once and then left to the user."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from reft_math.data.arithmetic import EMBEDDED_MODEL
from reft_math.errors import UserError
from reft_math.files.atomic import write_text

CARD_NAME = "README.md"
PLACE = "folder-or-hub-id"  # placeholder in a card until it is pushed
_JOINED = ("tags", "datasets")


@dataclass(frozen=True)
class TrainingNotes:
    """A card's notes on the training run; empty if nothing is known.

    Attributes:
        text: Markdown.
        metadata: Data sets on the hub, and results on them.
    """

    text: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


NO_NOTES = TrainingNotes()


def make_card(data: Mapping[str, Any], title: str, *parts: str) -> str:
    """Returns a card's text.

    Args:
        data: Metadata; None values are left out. Results are listed under the title's name.
        title: The first heading.
        parts: Markdown; empty parts are left out.
    """
    name = title if data.get("eval_results") else None
    text = "\n".join([f"# {title}\n", *filter(None, parts)])
    return f"---\n{ModelCardData(model_name=name, **data).to_yaml()}\n---\n\n{text}"


def update_card(before: str, new: str) -> str:
    """Returns ``before`` with the metadata of ``new``; text and results stay, since the text describes them.

    Tags and data sets are joined. A card without text gets the new one's.

    Raises:
        UserError: The metadata of ``before`` cannot be read.
    """
    fresh = ModelCard(new)
    try:
        card = ModelCard(before)
        old, data = card.data.to_dict(), fresh.data.to_dict()
        for name in _JOINED:
            if joined := _listed(old.get(name)) + _listed(data.get(name)):
                data[name] = list(dict.fromkeys(joined))
        if "model-index" in old:
            data["model-index"] = old["model-index"]
        card.data = ModelCardData(**{**old, **data})
    except (ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{CARD_NAME} must start with readable metadata, or hold none; mend or delete it ({reason})"
        ) from None
    card.text = card.text if card.text.strip() else fresh.text
    return str(card)


def with_license(card: str, license: str) -> str:
    """Returns the card with a license."""
    parsed = ModelCard(card)
    parsed.data["license"] = license
    return str(parsed)


def read_card(folder: Path) -> str | None:
    """Returns the card in a folder, if there is one.

    Raises:
        UserError: It is not UTF-8 text.
    """
    path = folder / CARD_NAME
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} must be UTF-8 text; mend or delete it ({error})") from None


def save_card(folder: Path, card: str) -> None:
    """Writes the card into a folder; in an existing card only the metadata are updated."""
    before = read_card(folder)
    write_text(folder / CARD_NAME, update_card(before, card) if before else card)


def base_metadata(base: str | None, relation: str) -> dict[str, Any]:
    """Returns the hub's keys for the base; empty if it is not a hub id."""
    return {"base_model": base, "base_model_relation": relation} if base and _is_hub_id(base) else {}


def base_in_words(base: str, revision: str | None) -> str:
    """Returns the base in Markdown. A folder's path is cut to its last part: the rest is private."""
    if base == EMBEDDED_MODEL:
        return "reft-math's embedded arithmetic model, a tiny Llama that shows that the machinery works and no more"
    if not _is_hub_id(base):
        return f"`{base_name(base)}`, a local folder"
    commit = f" at commit `{revision}`" if revision else ""
    return f"[{base}](https://huggingface.co/{base}){commit}"


def base_name(base: str) -> str:
    """Returns a hub id unchanged, or the last part of a folder's path."""
    return base if _is_hub_id(base) else Path(base).name


def _is_hub_id(base: str) -> bool:
    is_path = Path(base).is_absolute() or Path(base).is_dir() or len(Path(base).parts) > 2
    return base != EMBEDDED_MODEL and not is_path


def facts(items: Mapping[str, Any]) -> str:
    """Returns a Markdown list; None values are left out."""
    return "".join(f"- **{name}**: {value}\n" for name, value in items.items() if value is not None)


def in_words(versions: Mapping[str, str]) -> str | None:
    """Returns versions in one line; None if there are none."""
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or None


def parameters_sha256(folder: Path) -> str:
    """Returns a checksum of the parameters below a folder, as text."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return f"SHA-256 `{found.hexdigest()[:16]}`"


def _listed(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])
