"""Model cards: a ``README.md`` of metadata for the hub, parts that are renewed, and what was written around them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from reft_math.errors import UserError
from reft_math.files import write_text
from reft_math.models import EMBEDDED_MODEL

CARD_NAME = "README.md"
PLACE = "folder-or-hub-id"  # stands in a card until it is pushed
_PART = re.compile(r"<!-- reft-math: (\w+) -->\n(.*?)<!-- /reft-math: \1 -->\n?", re.DOTALL)
_JOINED = ("tags", "datasets")  # of an old card and a new one
_DIGEST = re.compile(r"SHA-256 `(\w+)`")


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


def make_card(data: Mapping[str, Any], title: str, parts: Mapping[str, str]) -> str:
    """A card's text.

    Args:
        data: Metadata; what is None is left out. Results go under the title's name.
        title: The first heading.
        parts: Markdown by name, kept between marks that `update_card` finds again; empty where nothing is known.
            ``training`` is that of `TrainingNotes`.
    """
    name = title if data.get("eval_results") else None
    text = "\n".join([f"# {title}\n", *(_marked(*part) for part in parts.items())])
    return f"---\n{ModelCardData(model_name=name, **data).to_yaml()}\n---\n\n{text}"


def update_card(before: str, new: str) -> str:
    """``before`` with the metadata and the parts that ``new`` knows; all else in it stays as it is.

    Tags and data sets are joined; results on a data set replace those on the same one. A part that was taken out stays
    out, and a card without text takes the new one's. Results of other parameters, by their `digest`, are dropped.

    Raises:
        UserError: The metadata of ``before`` cannot be read.
    """
    old, fresh = _parse(before), ModelCard(new)
    if {*_DIGEST.findall(new)} != {*_DIGEST.findall(before)} != set():
        _forget_results(old)
    text, parts = old.text if old.text.strip() else fresh.text, dict(_PART.findall(fresh.text))
    text = _PART.sub(lambda part: _marked(part[1], parts.get(part[1]) or part[2]), text)
    data = {**old.data.to_dict(), **fresh.data.to_dict()}
    for name in _JOINED:
        if joined := _listed(old.data.get(name)) + _listed(fresh.data.get(name)):
            data[name] = list(dict.fromkeys(joined))
    merged = ModelCardData(**data)
    if renewed := fresh.data.get("eval_results"):
        sets = {result.unique_identifier for result in renewed}
        others = [result for result in old.data.get("eval_results", []) if result.unique_identifier not in sets]
        merged.eval_results = [*renewed, *others]
    old.data, old.text = merged, text
    return str(old)


def with_license(card: str, license: str) -> str:
    """The card under a license."""
    parsed = _parse(card)
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


def save_card(folder: Path, card: str, before: str | None = None) -> None:
    """Writes the card into a folder, as an update of the one that is there, or else of ``before``."""
    before = read_card(folder) or before
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


def digest(folder: Path) -> str:
    """Tells the parameters below a folder from others."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return f"SHA-256 `{found.hexdigest()[:16]}`"


def _forget_results(card: ModelCard) -> None:
    card.data["eval_results"] = card.data["model_name"] = None
    card.text = _PART.sub(lambda part: _marked(part[1], "" if part[1] == "training" else part[2]), card.text)


def _marked(name: str, text: str) -> str:
    return f"<!-- reft-math: {name} -->\n{text}<!-- /reft-math: {name} -->\n"


def _parse(card: str) -> ModelCard:
    try:
        parsed = ModelCard(card)
        for name in _JOINED:
            if not all(isinstance(item, str) for item in _listed(parsed.data.get(name))):
                raise ValueError(f"{name} must be text, or a list of texts")
        return parsed
    except (ValueError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{CARD_NAME} must start with readable metadata, or hold none; mend or delete it ({reason})"
        ) from None


def _listed(value: str | Sequence[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])
