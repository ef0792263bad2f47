"""The configuration saved beside a regressor's weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Literal, get_args

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reft_math.data.regression_rows import SCALES
from reft_math.data.rows import Prompt
from reft_math.data.templates import PromptTemplate
from reft_math.errors import UserError
from reft_math.files.atomic import write_json
from reft_math.files.strict import from_json, read_object
from reft_math.regression.grid import Grid, make_grid, number_texts, parse_numbers
from reft_math.regression.heads import HEADS, HeadName
from reft_math.regression.tokens import Start, add_number_tokens

REGRESSOR_CONFIG = "regressor_config.json"
LOSSES = ("raft", "mbr", "ce", "log", *(f"head:{name}" for name in HEADS))
Tune = Literal["none", "red", "bias", "loreft", "lora", "full"]


def _are_bounds(bounds: Sequence[object]) -> bool:
    are_numbers = len(bounds) == 2 and all(isinstance(bound, int | float) for bound in bounds)
    return are_numbers and -math.inf < bounds[0] < bounds[1] < math.inf  # type: ignore[operator]


@dataclass(frozen=True)
class RegressorConfig:
    """A regressor's configuration: how outputs become a number, and what was trained.

    Attributes:
        loss: One of `LOSSES`.
        grid: The numbers, as decimals or as ``lower:upper:resolution``.
        texts: Texts of the numbers, if not decimals.
        normalised: Whether probabilities are divided by their sum over the grid.
        bounds: The targets that the loss sees as 0 and 1; None for unscaled targets. Predictions are always on the
            targets' own scale.
        bidirectional: Whether the prompt's tokens see each other in both directions.
        added_tokens: Initial values of tokens added for the grid's numbers; None without added tokens.
        tune: The part that was trained.
        template: Name of the prompt template, with its version once it is resolved, e.g. ``chat/1``.
        prompt: Wording of the data's texts.
        data: The data set it was trained on.
        base_model, base_revision: Hub id or folder of the base, and its commit if known.
        random_seed: Seed of the base's random weights; None for the checkpoint's weights.
        form: How it was trained. 1, which regressors saved without this field are: numbers that begin others are
            scored without their end (but by loss ce), and adapters leave added tokens' rows at their start. 2: neither.
        versions: Versions of the packages that wrote it.
    """

    loss: str = "raft"
    grid: str = "1:5:1"
    texts: tuple[str, ...] | None = None
    normalised: bool = False
    bounds: tuple[float, float] | None = None
    bidirectional: bool = False
    added_tokens: Start | None = None
    tune: Tune = "none"
    template: str = "auto"
    prompt: Prompt = "ours"
    data: str | None = None
    base_model: str | None = None
    base_revision: str | None = None
    random_seed: int | None = None
    form: int = 2
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choices = {"loss": LOSSES, "tune": get_args(Tune), "added_tokens": (None, *get_args(Start))}
        choices |= {"prompt": get_args(Prompt), "form": (1, 2)}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                shown = ", ".join(str(choice) for choice in known if choice is not None)
                raise UserError(f"{name} must be one of {shown}; got {getattr(self, name)!r}")
        numbers = parse_numbers(self.grid)
        if self.texts is not None and len(self.texts) != len(numbers):
            raise UserError(f"every number needs a text; got {len(self.texts)} texts for {len(numbers)} numbers")
        if self.bounds is not None and not _are_bounds(self.bounds):
            raise UserError(f"bounds are two finite numbers, the lower one first; got {self.bounds}")
        if self.random_seed is not None and not 0 <= self.random_seed < 2**32:
            raise UserError(f"random_seed is a whole number from 0 to 2^32 - 1; got {self.random_seed}")
        if self.loss == "log" and (self.bounds is None or len(numbers) != 1 or numbers[0] != 1):
            raise UserError(
                f"the log loss is that of one token's probability, which stands for 1: it needs bounds and the grid"
                f" of 1 alone; got bounds {self.bounds} and grid {self.grid}"
            )
        if self.normalised and self.loss not in ("raft", "mbr"):
            raise UserError(f"normalised is for raft and mbr, which average over the grid; got loss {self.loss}")
        if len(numbers) == 1 and (self.normalised or self.loss == "ce"):
            what = "normalised probabilities" if self.normalised else "loss ce"
            raise UserError(f"{what} over one number always predict it; got grid {self.grid}: take two numbers or more")

    @property
    def head(self) -> HeadName | None:
        """The head's name; None if the loss is a grid's."""
        return next((name for name in HEADS if self.loss == f"head:{name}"), None)

    @property
    def has_added_rows(self) -> bool:
        """Whether rows of added tokens are trained beside an adapter, in a frozen model."""
        return self.added_tokens is not None and self.tune not in ("none", "full") and self.form > 1

    @property
    def predictor(self) -> str:
        """The predictor that the loss trains, by the names of `Regressor.predictors`."""
        if self.head is not None:
            return "head"
        if self.loss == "ce":
            return "mode"
        return "rail_normalised" if self.normalised else "rail"

    def number_texts(self) -> dict[Decimal, str]:
        numbers = parse_numbers(self.grid)
        if self.texts is None:
            return number_texts(numbers)
        return dict(zip(numbers, self.texts, strict=True))

    def make_grid(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: PromptTemplate) -> Grid:
        """Makes the grid as it follows the template's prompts; adds tokens to model and tokenizer if configured.

        If one number begins another ("1" and "10"), every string ends with the token that ends an answer.
        """
        texts = self.number_texts()
        if self.added_tokens is not None:
            return add_number_tokens(model, tokenizer, texts, self.added_tokens)
        suffix = template.prompt("", tokenizer) or "."  # the end of a bare text
        grid = make_grid(tokenizer, texts, suffix)
        if grid.is_nested and (self.form > 1 or self.loss == "ce"):  # otherwise "10" is at least as probable as "100"
            return make_grid(tokenizer, texts, suffix, terminator=template.end_token_id(tokenizer))
        return grid

    def save_pretrained(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(Path(folder) / REGRESSOR_CONFIG, dataclasses.asdict(self))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> RegressorConfig:
        path = Path(folder) / REGRESSOR_CONFIG
        try:
            return from_json(cls, {"prompt": "ours", "form": 1, **read_object(path)})
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} is not a readable regressor config ({error}); was it saved by this package?"
            ) from None


def default_grid(data: str, is_fine: bool = False) -> str:
    """Returns the default grid of a data set.

    Raises:
        UserError: The data are the user's own.
    """
    if data not in SCALES:
        raise UserError(
            f"rows of one's own need a grid that reaches their targets; pass --grid for {data}, such as 1:9:1"
        )
    return SCALES[data].fine_grid if is_fine else SCALES[data].grid
