"""Reads BREP's ``train_config.json``: the base, site and prompt with which an adapter was trained."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

from reft_math.data.templates import TEMPLATES
from reft_math.errors import UserError
from reft_math.files.strict import read_object

TRAIN_CONFIG_NAME = "train_config.json"
# Our template with the instruction and thinking of BREP's prompt; the chat format is the tokenizer's own.
_NEAREST = {
    "llama": "chat-step-by-step",
    "llama3": "chat",
    "qwen_base": "chat-boxed",
    "qwen_math": "chat-boxed",
    "deepseek_math": "chat-boxed",
    "qwen3": "chat-thinking",
    "qwen3_nothink": "chat",
    "chat_template": "chat",
}


@dataclass(frozen=True)
class TrainConfig:
    """Contents of the file; None for what it lacks.

    Attributes:
        base: The base's folder on the machine that trained.
        site: The file's ``op_position``.
        prompt: The file's ``template_index``.
    """

    base: str | None
    site: str | None
    prompt: str | None

    @property
    def base_here(self) -> str | None:
        """The base, if its folder exists on this machine."""
        return self.base if self.base is not None and os.path.isdir(self.base) else None  # any text, unlike Path

    @property
    def template(self) -> str | None:
        """The nearest template of this project, with its version."""
        name = _NEAREST.get(self.prompt or "")
        return name and str(TEMPLATES[name])

    @property
    def note(self) -> str:
        nearest = f"template {self.template}" if self.template else "no template here"
        return (
            f"{TRAIN_CONFIG_NAME}: base {self.base}, site {self.site}, prompt {self.prompt} ({nearest} is near to it;"
            " --template takes another)"
        )

    def compare(self, base: str | None, site: str) -> None:
        """Warns if the adapter is put on a base of another name, or its parameters are from another site."""
        for name, said, has in (("base", self.base, base), ("site", self.site, site)):
            if said is not None and has is not None and Path(said).name.lower() != Path(has).name.lower():
                warnings.warn(f"{TRAIN_CONFIG_NAME} says {name} {said}, and it is {has}", stacklevel=4)


def read_train_config(folder: Path) -> TrainConfig | None:
    """Reads the file beside a ``delta_vector.pth``; None if there is no such file.

    Raises:
        UserError: It is not a JSON object.
    """
    path = folder / TRAIN_CONFIG_NAME
    if not path.is_file():
        return None
    try:
        found = read_object(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} must be BREP's, or not be there; it cannot be read ({error})") from None
    values = (found.get(name) for name in ("model_path", "op_position", "template_index"))
    return TrainConfig(*(None if value is None else str(value) for value in values))


def base_beside(source: str) -> str:
    """Returns the base that a ``train_config.json`` beside a checkpoint names, if its folder exists here.

    Raises:
        UserError: It names no base, or one that is elsewhere.
    """
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    said = read_train_config(folder)
    if said is not None and said.base_here is not None:
        return said.base_here
    hint = "" if said is None else f"; {TRAIN_CONFIG_NAME} names {said.base}, which is no folder here"
    raise UserError(f"--model must be the base that the adapter was trained on{hint}")
