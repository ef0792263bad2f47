"""Model cards: a ``README.md`` of metadata for the hub, and text that is written once and then the user's."""

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
PLACE = "folder-or-hub-id"  # stands in a card until it is pushed
_JOINED = ("tags", "datasets")


@dataclass(frozen=True)
class TrainingNotes:
    """What a card says of the run that trained; empty where nothing is known.

    Attributes:
        text: Markdown.
        metadata: Data sets and results, of sets that the hub has.
    """

    text: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


NO_NOTES = TrainingNotes()


def make_card(data: Mapping[str, Any], title: str, *parts: str) -> str:
    """A card's text.

    Args:
        data: Metadata; what is None is left out. Results go under the title's name.
        title: The first heading.
        parts: Markdown; empty where nothing is known.
    """
    name = title if data.get("eval_results") else None
    text = "\n".join([f"# {title}\n", *filter(None, parts)])
    return f"---\n{ModelCardData(model_name=name, **data).to_yaml()}\n---\n\n{text}"


def update_card(before: str, new: str) -> str:
    """``before`` with the metadata of ``new``; its text stays, and so do results, for the text tells of them.

    Tags and data sets are joined. A card without text takes the new one's.

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
    """The card under a license."""
    parsed = ModelCard(card)
    parsed.data["license"] = license
    return str(parsed)


def read_card(folder: Path) -> str | None:
    """The card in a folder, if there is one.

    Raises:
        UserError: It is no UTF-8 text.
    """
    path = folder / CARD_NAME
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} must be UTF-8 text; mend or delete it ({error})") from None


def save_card(folder: Path, card: str) -> None:
    """Writes the card into a folder; of one that is there only the metadata are renewed."""
    before = read_card(folder)
    write_text(folder / CARD_NAME, update_card(before, card) if before else card)


def base_metadata(base: str | None, relation: str) -> dict[str, Any]:
    """The hub's keys for the base; none for one that is not a hub id."""
    return {"base_model": base, "base_model_relation": relation} if base and _is_hub_id(base) else {}


def base_in_words(base: str, revision: str | None) -> str:
    """The base in Markdown. Of a folder's path only the last part: the rest is the trainer's own."""
    if base == EMBEDDED_MODEL:
        return "reft-math's embedded arithmetic model, a tiny Llama that shows that the machinery works and no more"
    if not _is_hub_id(base):
        return f"`{base_name(base)}`, a local folder"
    commit = f" at commit `{revision}`" if revision else ""
    return f"[{base}](https://huggingface.co/{base}){commit}"


def base_name(base: str) -> str:
    """A hub id as it is, and the last part of a folder's path."""
    return base if _is_hub_id(base) else Path(base).name


def _is_hub_id(base: str) -> bool:
    is_path = Path(base).is_absolute() or Path(base).is_dir() or len(Path(base).parts) > 2
    return base != EMBEDDED_MODEL and not is_path


def facts(items: Mapping[str, Any]) -> str:
    """A Markdown list; what is None is left out."""
    return "".join(f"- **{name}**: {value}\n" for name, value in items.items() if value is not None)


def in_words(versions: Mapping[str, str]) -> str | None:
    """Versions in a line; None where there are none."""
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or None


def parameters_sha256(folder: Path) -> str:
    """Tells the parameters below a folder from others."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return f"SHA-256 `{found.hexdigest()[:16]}`"


def _listed(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])
