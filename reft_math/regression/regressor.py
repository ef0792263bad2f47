"""A causal language model that predicts numbers, over a grid of token strings or by a head."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reft_math.commands.progress import progress
from reft_math.data.regression_rows import RegressionRow, drawn
from reft_math.data.templates import BARE, PromptTemplate, get_template
from reft_math.errors import UserError
from reft_math.files.atomic import atomic_path, write_files
from reft_math.files.tensors import read_parameters
from reft_math.models.card import CARD_NAME
from reft_math.models.hub import push
from reft_math.regression import losses, predictors
from reft_math.regression.batches import RegressionCollator, encode_rows
from reft_math.regression.card import write_regressor_card
from reft_math.regression.config import RegressorConfig
from reft_math.regression.grid import Grid
from reft_math.regression.heads import Head, make_head
from reft_math.regression.predictors import parse_number
from reft_math.regression.scores import NO_TOKEN, PromptOutputs, read, string_log_probs
from reft_math.regression.tokens import AddedRows, without_names

HEAD_NAME, ROWS_NAME = "head.safetensors", "added_rows.safetensors"
ADAPTER_FOLDER, MODEL_FOLDER = "adapter", "model"
MOST_TOLD = 101  # greatest grid whose probabilities are recorded one by one
Intervening = Callable[[int], AbstractContextManager[None]]


class Regressor(nn.Module):
    """A regressor whose ``forward`` returns the loss of every row and the predictions that the loss trains.

    Args:
        model: The base, with LoRA in its own layers.
        tokenizer: The model's tokenizer, with the grid's tokens.
        template: Turns texts into prompts.
        grid: Grid made by the config's `RegressorConfig.make_grid`.
        config: The configuration.
        adapter: Module to train and save instead of the model; None if the model is tuned whole, or not at all.
        intervening: Maps the prompts' length to a context in which interventions act on passes of ``model``; for
            adapters that act through hooks.

    Attributes:
        head: The head, if the loss has one.
        added_rows: Trained changes of added tokens' embeddings, if an adapter leaves the rest frozen.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        template: PromptTemplate,
        grid: Grid,
        config: RegressorConfig,
        adapter: nn.Module | None = None,
        intervening: Intervening | None = None,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.grid, self.regressor_config, self.adapter = grid, config, adapter
        self.intervening: Intervening = intervening or (lambda length: nullcontext())
        self.head: Head | None = None
        if config.head is not None:
            embeddings = model.get_output_embeddings().weight
            vocabulary, width = embeddings.shape
            token = template.end_token_id(tokenizer)  # every tokenizer has it, no grid does
            self.head = make_head(config.head, grid, vocabulary, width, token).to(embeddings.device)
        self.added_rows = AddedRows(model, grid) if config.has_added_rows else None
        end = template.end_token_id(tokenizer)
        ended = [string if string[-1] == end else (*string, end) for string in grid.token_ids]
        longest = max(map(len, ended))
        self._ended_strings = torch.tensor([[*ids, *[NO_TOKEN] * (longest - len(ids))] for ids in ended])

    # --- training -----------------------------------------------------------------------------------------------

    @property
    def hf_device_map(self) -> Any:
        """The device map of a base spread over several devices, from which a trainer sees that it must not move it."""
        return self.model.hf_device_map

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, targets: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Returns loss and predictions of prompts with their targets.

        In training, cross-entropy reads the target's string and no other, with the token that ends it; there are no
        predictions then.

        Args:
            input_ids, attention_mask: ``(batch, L)``, padded on the left.
            targets: ``y*``, ``(batch,)``, on the data's scale.

        Returns:
            ``loss``, ``(batch,)``, each row's, on the scale of the config's bounds; ``predictions``, ``(batch,)``, by
            the config's predictor, on the data's scale.
        """
        if self.regressor_config.loss == "ce" and self.training:
            return {"loss": self._string_cross_entropy(input_ids, attention_mask, targets)}
        reading = self._read(input_ids, attention_mask)
        with torch.autocast(reading.logits.device.type, enabled=False):
            predictions = self._predictions(reading)[self.regressor_config.predictor]
            loss = self._loss(reading, predictions, self._scaled(targets))
            return {"loss": loss, "predictions": self._unscaled(predictions)}

    def _string_cross_entropy(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        distances = (self._scaled(targets)[:, None] - self.grid.values.to(targets)).abs()
        strings = self._ended_strings.to(targets.device)[distances.argmin(dim=1)]
        strings = strings[:, (strings != NO_TOKEN).any(dim=0)]
        with self.intervening(input_ids.shape[1]):
            return -string_log_probs(
                self.model, input_ids, attention_mask, strings, self.regressor_config.bidirectional
            )

    def _loss(self, reading: PromptOutputs, predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns losses ``(batch,)``; predictions and targets are on the loss's scale."""
        if self.head is not None:
            return losses.squared_error(predictions, targets, reduction="none")
        assert reading.log_probs is not None
        values = self.grid.values
        if self.regressor_config.loss == "raft":
            return losses.raft(reading.log_probs, values, targets, self.regressor_config.normalised, reduction="none")
        if self.regressor_config.loss == "mbr":
            return losses.mbr(reading.log_probs, values, targets, self.regressor_config.normalised, reduction="none")
        if self.regressor_config.loss == "log":
            return losses.log_loss(reading.log_probs[:, 0], targets, reduction="none")
        return losses.string_cross_entropy(reading.log_probs, values, targets, reduction="none")

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Enables the checkpointing of the model, or of an adapter, which recomputes under its interventions."""
        owner: Any = self.model if self.adapter is None else self.adapter
        settings = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        if hasattr(owner, "activation_checkpointing_enable"):  # the method's name from transformers 5.23 on
            owner.activation_checkpointing_enable(activation_checkpointing_kwargs=settings, **options)
        else:
            owner.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings, **options)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Calls `gradient_checkpointing_enable`; transformers 5.23 and later use this name."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, **options)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Returns trained parameters by name; a shared one under its first name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    @torch.no_grad()
    def start_at_mean(self, rows: Sequence[RegressionRow]) -> None:
        """Sets ``b ← b + mean(y*) − mean(ŷ)`` in a head with a b, which then predicts the mean target on average.

        Args:
            rows: The training rows; ŷ is computed on 64 of them.
        """
        intercept: torch.Tensor | None = None if self.head is None else self.head.intercept
        if intercept is not None:
            predicted = torch.tensor(self.predict([row.text for row in drawn(rows, 64)]))
            targets = torch.tensor([row.target for row in rows])
            intercept.add_((self._scaled(targets).mean() - self._scaled(predicted).mean()).to(intercept))

    # --- predictions --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def predictors(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns all predictors' numbers, ``(batch,)`` each, on the data's scale, and the grid's ``entropy`` in nats.

        And, of grids with 101 numbers at most, their ``probabilities``, ``(batch, numbers)``, not normalised.

        Over a grid they are ``rail``, ``rail_normalised``, ``mode`` and ``median``, over one number ``rail`` alone; a
        head has its own, ``head``.
        """
        reading = self._read(input_ids, attention_mask)
        found = {name: self._unscaled(numbers) for name, numbers in self._predictions(reading).items()}
        if reading.log_probs is not None:
            found["entropy"] = predictors.entropy(reading.log_probs)
            if len(self.grid) <= MOST_TOLD:
                found["probabilities"] = reading.log_probs.exp()
        return found

    @torch.no_grad()
    def predict(self, texts: Sequence[str], batch_size: int = 16) -> list[float]:
        """Predicts the number of each text, by the trained predictor."""
        rows = [RegressionRow(str(index), text, 0.0) for index, text in enumerate(texts)]
        encoded = encode_rows(rows, self.tokenizer, self.template)
        collator = RegressionCollator(int(self.tokenizer.pad_token_id))
        numbers = []
        self.eval()
        starts = range(0, len(encoded), batch_size)
        for start in progress(starts, name="predict", unit="batch") if len(starts) > 1 else starts:
            batch = collator(encoded[start : start + batch_size])
            ids, mask = (batch[name].to(self.model.device) for name in ("input_ids", "attention_mask"))
            numbers += self.predictors(ids, mask)[self.regressor_config.predictor].tolist()
        return numbers

    def parse(self, atomic_path: str) -> float | None:
        """Returns the number in an answer, on the data's scale; None if there is no number.

        It says one as the grid's texts do, if the grid has texts of its own, and otherwise as Python's ``float`` reads.
        """
        number = parse_number(without_names(atomic_path), math.nan)
        if self.regressor_config.texts is not None:
            by_text = dict(zip(self.grid.texts, self.grid.values.tolist(), strict=True))
            number = by_text.get(atomic_path.strip(), math.nan)
        return None if math.isnan(number) else float(self._unscaled(torch.tensor(number, dtype=torch.float64)))

    def _read(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> PromptOutputs:
        grid = self.grid if self.head is None or self.head.needs_grid else None
        hidden = self.head is not None and self.head.needs_hidden
        with self.intervening(input_ids.shape[1]):
            return read(self.model, input_ids, attention_mask, grid, self.regressor_config.bidirectional, hidden)

    def _predictions(self, reading: PromptOutputs) -> dict[str, torch.Tensor]:
        """On the loss's scale."""
        if self.head is not None:
            return {"head": self.head(reading)}
        assert reading.log_probs is not None
        log_probs, values = reading.log_probs, self.grid.values
        rail = predictors.rail(log_probs, values)
        if len(values) == 1:  # no choice
            return {"rail": rail}
        return {
            "rail": rail,
            "rail_normalised": predictors.rail(log_probs, values, normalised=True),
            "mode": predictors.mode(log_probs, values),
            "median": predictors.median(log_probs, values),
        }

    def _scaled(self, targets: torch.Tensor) -> torch.Tensor:
        lower, upper = self.regressor_config.bounds or (0.0, 1.0)
        return (targets - lower) / (upper - lower)

    def _unscaled(self, predictions: torch.Tensor) -> torch.Tensor:
        lower, upper = self.regressor_config.bounds or (0.0, 1.0)
        return lower + (upper - lower) * predictions

    @property
    def reach(self) -> tuple[float, float]:
        """Returns the least and the greatest possible average over the grid, on the data's scale."""
        values = self.grid.values if self.regressor_config.normalised else torch.cat([self.grid.values, torch.zeros(1)])
        lower, upper = self._unscaled(torch.stack([values.min(), values.max()])).tolist()
        return lower, upper

    @property
    def added_tokens(self) -> int:
        """Number of tokens read after each prompt in training: the grid's, or those of the target's string."""
        if self.regressor_config.loss == "ce":
            return self._ended_strings.shape[1] - 1
        return self.grid.trie.num_inner if self.head is None or self.head.needs_grid else 0

    # --- files --------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Writes the config, the head, a model card, and the adapter with added rows or, if tuned whole, the model.

        A card already in the folder keeps its text.
        """
        folder = Path(folder)
        self.regressor_config.save_pretrained(folder)
        for path, module in self._own(folder):
            tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in module.state_dict().items()}
            with atomic_path(path) as aside:
                save_file(tensors, aside, metadata={"format": "pt"})
        if self.adapter is not None:
            write_files(folder / ADAPTER_FOLDER, self._save_adapter)
        elif self.regressor_config.tune == "full":
            write_files(folder / MODEL_FOLDER, self.model.save_pretrained)
            write_files(folder / MODEL_FOLDER, self.tokenizer.save_pretrained)
        write_regressor_card(folder)

    def _save_adapter(self, folder: Path) -> None:
        # Added tokens' trained rows have their own file, so peft need not save whole embeddings.
        self.adapter.save_pretrained(folder, save_embedding_layers=False)  # type: ignore[operator, union-attr]
        (folder / CARD_NAME).unlink(missing_ok=True)  # the regressor's card covers both

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> CommitInfo:
        """Saves to the hub; keyword arguments as in `reft_math.models.hub.push`."""
        return push(self.save_pretrained, repo_id, **kwargs)

    def _own(self, folder: Path) -> list[tuple[Path, nn.Module]]:
        """Returns the files of the regressor's own modules: head and added rows, if it has them."""
        modules = {HEAD_NAME: self.head, ROWS_NAME: self.added_rows}
        return [(folder / name, module) for name, module in modules.items() if module is not None]

    def load_own(self, folder: str | Path) -> None:
        """Reads the weights of the head and of added rows, if the config has them.

        Raises:
            UserError: A file is missing or damaged, its names or shapes are not the module's, or it holds a NaN.
        """
        for path, module in self._own(Path(folder)):
            try:
                module.load_state_dict(read_parameters(path))
            except (OSError, ValueError, RuntimeError) as error:
                what = "added tokens" if module is self.added_rows else f"head {self.regressor_config.head}"
                raise UserError(f"{path} does not hold the weights of {what}: {' '.join(str(error).split())}") from None


def make_template(config: RegressorConfig, tokenizer: PreTrainedTokenizerBase) -> PromptTemplate:
    """Returns the config's prompt template.

    Raises:
        UserError: Its wording has changed since the regressor was trained, or it lets the model think first.
    """
    name, _, version = config.template.partition("/")
    is_bare = name == BARE.name or (name == "auto" and config.prompt == "paper")  # the paper's ends at its number
    template = BARE if is_bare else get_template(name, tokenizer)
    if template.is_thinking:
        raise UserError(
            f"a regressor's number follows the prompt at once, with no thought between; got template {name}"
        )
    if version and not template.is_recorded_as(config.template):
        raise UserError(
            f"the regressor was trained with prompt template {config.template}, this version has {template};"
            " use the version of reft-math that trained it"
        )
    return template
