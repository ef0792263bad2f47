"""Turns questions into completions: prompts, decoding, and the end of a completion's text."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from transformers import LogitsProcessorList, PreTrainedTokenizerBase, StoppingCriteriaList

from interventions.generation import GatedOutput
from interventions.leaving import sample_leaving
from interventions.logits import FiniteLogits, NotFiniteLogits
from reft_math.data.prefix import pad_left
from reft_math.data.stops import StopTexts
from reft_math.data.templates import PromptTemplate, encode_prompt
from reft_math.decoding.engine import Continuation, Engine
from reft_math.errors import Unfinished

Generate = Callable[..., Any]
Complete = Callable[[Sequence[str], int | None], list[dict[str, Any]]]


@dataclass(frozen=True)
class CompletionSettings:
    """Settings of completions.

    Attributes:
        tokenizer, template: Turn a question into a prompt.
        end_token_ids: Every token at which a completion stops; `stops` are the texts.
        max_new_tokens: Greatest number of tokens.
        opener: Text with which every completion starts; part of the completion.
        sampling: Settings of ``generate`` such as ``temperature``; empty is greedy.
    """

    tokenizer: PreTrainedTokenizerBase
    template: PromptTemplate
    end_token_ids: list[int]
    max_new_tokens: int
    opener: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def stops(self) -> tuple[str, ...]:
        """Texts at which a completion also stops; not part of it."""
        return self.template.stops(self.tokenizer)[1]

    def prompts(self, questions: Sequence[str]) -> list[torch.Tensor]:
        """Returns token ids of each question's prompt and the opener."""
        opener = list(self.tokenizer.encode(self.opener, add_special_tokens=False)) if self.opener else []
        return [torch.tensor(encode_prompt(self.template, text, self.tokenizer) + opener) for text in questions]

    def settings(self) -> dict[str, Any]:
        """Returns keyword arguments of one call of ``generate``."""
        stop = StopTexts(self.stops, self.tokenizer) if self.stops else None
        return {
            "max_new_tokens": self.max_new_tokens,
            "eos_token_id": self.end_token_ids,
            "pad_token_id": self.tokenizer.pad_token_id,
            "use_cache": True,  # overrides the checkpoint's configuration; the text is the same
            "return_dict_in_generate": True,
            **({"stopping_criteria": StoppingCriteriaList([stop])} if stop else {}),
            **({"do_sample": True, **self.sampling} if self.sampling else {}),
        }

    def text(self, token_ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True))

    def until_end(self, token_ids: Sequence[int]) -> int | None:
        """Returns the index of the first end token; None if there is none."""
        return next((index for index, token in enumerate(token_ids) if token in self.end_token_ids), None)

    def stop_in(self, text: str) -> re.Match[str] | None:
        """Returns the first match of `stops` in a text."""
        return re.search("|".join(map(re.escape, self.stops)), text) if self.stops else None

    def read(self, token_ids: Sequence[int]) -> dict[str, Any]:
        """Returns ``completion``, ``num_tokens`` and ``finished``, as in `complete`, for the tokens after a prompt."""
        end = self.until_end(token_ids)
        num_tokens = len(token_ids) if end is None else end + 1
        text = self.text(token_ids[:end])
        if stop := self.stop_in(text):
            text = text[: stop.start()]
            num_tokens = bisect_left(
                range(num_tokens), True, key=lambda number: self.stop_in(self.text(token_ids[:number])) is not None
            )
        return {
            "completion": self.opener + text,
            "num_tokens": num_tokens,
            "finished": end is not None or stop is not None,
        }


def complete(
    questions: Sequence[str],
    seed: int | None,
    *,
    generate: Generate,
    decoding: CompletionSettings,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Completes one batch of questions.

    Args:
        questions: Questions to answer.
        seed: Seed of the samples; None for greedy decoding.
        generate: ``generate(inputs, attention_mask=…, **settings)`` with ``sequences``, such as a model's ``generate``.
        decoding: Prompts, stopping and sampling.
        device: The model's device.

    Returns:
        Per question ``completion`` (text with the opener), ``num_tokens`` (drawn tokens with the end token) and
        ``finished`` (false if ``max_new_tokens`` cut it off); under a gate also ``kl`` (``D_t`` in nats while it was
        open), ``cumulative_kl``, ``dead_band`` if there is one, and ``closing_position`` (None if it never closed).
    """
    output, width = generate_rows(questions, seed, generate, decoding, device)
    rows = [decoding.read(row) for row in output.sequences[:, width:].tolist()]
    return [{**row, **gate} for row, gate in zip(rows, _gate_records(output), strict=True)]


def complete_by_engine(
    questions: Sequence[str],
    seed: int | None,
    *,
    generate: Generate,
    decoding: CompletionSettings,
    device: torch.device,
    engine: Engine,
) -> list[dict[str, Any]]:
    """Completes like `complete`, but ``generate`` draws only until each row's gate closes, and an engine the rest.

    Args:
        generate: As in `complete`; must take ``until_closed`` and return a `GatedOutput`.
        engine: Server with the base.

    Raises:
        Unfinished: The engine does not finish some rows; the error holds the others' dictionaries by index.
    """
    output, width = generate_rows(questions, seed, generate, decoding, device, until_closed=True)
    gates = _gate_records(output)
    rows: dict[int, dict[str, Any]] = {}
    prefixes: dict[int, list[int]] = {}
    for index, drawn in enumerate(output.sequences[:, width:].tolist()):
        closing = int(output.closing_positions[index])
        if closing < 0:
            rows[index] = {**decoding.read(drawn), **gates[index]}
        else:
            prefixes[index] = drawn[:closing]
    encoded = decoding.prompts(questions)
    prompts = [encoded[index].tolist() for index in prefixes]
    stop: Unfinished | None = None
    try:
        continued = continue_by_engine(prompts, list(prefixes.values()), seed or 0, decoding, engine)
        written: Mapping[int, dict[str, Any]] = dict(enumerate(continued))
    except Unfinished as error:
        stop, written = error, error.done
    for place, index in enumerate(prefixes):
        if place in written:
            rows[index] = {**written[place], **gates[index]}
    if stop is not None:
        raise Unfinished(str(stop), rows)
    return [rows[index] for index in range(len(rows))]


def complete_in_engine(
    questions: Sequence[str], seed: int | None, *, decoding: CompletionSettings, engine: Engine
) -> list[dict[str, Any]]:
    """Completes like `complete`, but the engine has the adapter and its gate, and draws every token.

    Raises:
        Unfinished: As in `complete_by_engine`.
    """
    prompts = [prompt.tolist() for prompt in decoding.prompts(questions)]
    return continue_by_engine(prompts, [[]] * len(prompts), seed or 0, decoding, engine)


def continue_by_engine(
    prompts: Sequence[list[int]],
    prefixes: Sequence[list[int]],
    seed: int,
    decoding: CompletionSettings,
    engine: Engine,
) -> list[dict[str, Any]]:
    """Lets an engine continue prefixes of completions.

    Args:
        prompts, prefixes: Token ids by row.
        seed, decoding, engine: As in `complete_by_engine`.

    Returns:
        As `complete`, of prefix and continuation together; what a gate measured only where the engine has the adapter.

    Raises:
        Unfinished: As in `complete_by_engine`, by index of the row.
    """

    def joined(continuations: Mapping[int, Continuation]) -> dict[int, dict[str, Any]]:
        return {
            place: {**_joined(prefixes[place], written, decoding), **_reported(written)}
            for place, written in continuations.items()
        }

    try:
        continuations = engine.complete(
            [[*prompt, *prefix] for prompt, prefix in zip(prompts, prefixes, strict=True)],
            [decoding.max_new_tokens - len(prefix) for prefix in prefixes],
            decoding.end_token_ids,
            decoding.sampling,
            seed,
            decoding.stops,
        )
    except Unfinished as error:
        raise Unfinished(str(error), joined(error.done)) from None
    return list(joined(dict(enumerate(continuations))).values())


@torch.no_grad()
def continue_locally(
    prompts: Sequence[list[int]],
    prefixes: Sequence[list[int]],
    generate: Generate,
    decoding: CompletionSettings,
    device: torch.device,
    names: Sequence[str],
) -> list[list[int]]:
    """Lets a model continue prefixes of completions greedily.

    Args:
        prompts, prefixes: Token ids by row.
        generate, decoding, device: As in `complete`.
        names: A name for each row, for errors.

    Returns:
        Tokens of each row's prefix and continuation, with padding after an end.
    """
    rows = [torch.tensor([*prompt, *prefix]) for prompt, prefix in zip(prompts, prefixes, strict=True)]
    inputs = pad_left(rows, int(decoding.tokenizer.pad_token_id)).to(device)
    settings = {**decoding.settings(), "max_new_tokens": decoding.max_new_tokens - min(map(len, prefixes))}
    attention_mask = pad_left([torch.ones_like(row) for row in rows], 0).to(device)
    settings |= {"logits_processor": LogitsProcessorList([FiniteLogits()]), "custom_generate": sample_leaving}
    try:
        output = generate(inputs, attention_mask=attention_mask, **settings)
    except NotFiniteLogits as error:
        raise NotFiniteLogits(error.row, names[error.row]) from None
    drawn = output.sequences[:, inputs.shape[1] :].tolist()
    return [[*prefix, *rest][: decoding.max_new_tokens] for prefix, rest in zip(prefixes, drawn, strict=True)]


def generate_rows(
    questions: Sequence[str],
    seed: int | None,
    generate: Generate,
    decoding: CompletionSettings,
    device: torch.device,
    **options: Any,
) -> tuple[Any, int]:
    """Returns ``generate``'s output and the width of the prompts."""
    prompts = decoding.prompts(questions)
    inputs = pad_left(prompts, int(decoding.tokenizer.pad_token_id)).to(device)
    attention_mask = pad_left([torch.ones_like(prompt) for prompt in prompts], 0).to(device)
    if seed is not None:
        torch.manual_seed(seed)
    try:
        output = generate(
            inputs,
            attention_mask=attention_mask,
            logits_processor=LogitsProcessorList([FiniteLogits()]),
            custom_generate=sample_leaving,
            **decoding.settings(),
            **options,
        )
    except NotFiniteLogits as error:
        raise NotFiniteLogits(error.row, questions[error.row]) from None
    return output, inputs.shape[1]


def _joined(prefix: list[int], written: Continuation, decoding: CompletionSettings) -> dict[str, Any]:
    """Reads a prefix and an engine's continuation; some engines write the stops out, or continue after them."""
    start = decoding.text(prefix)
    text, num_tokens, finished = start + written.text, written.num_tokens, written.finished
    if stop := decoding.stop_in(text):
        if stop.end() < len(text):
            kept = text[len(start) : stop.end()]
            num_tokens = len(decoding.tokenizer.encode(kept, add_special_tokens=False))
        text, finished = text[: stop.start()], True
    return {"completion": decoding.opener + text, "num_tokens": len(prefix) + num_tokens, "finished": finished}


def _reported(written: Continuation) -> dict[str, Any]:
    """Returns the measurements of a gate that ran in the engine; empty without one, and for gates that never close."""
    report = written.report
    if not report or not report["kl"]:
        return {}
    closing = report["closing_position"]
    return gate_record(report["kl"], report["dead_band"], None if closing < 0 else closing)


def _gate_records(output: Any) -> list[dict[str, Any]]:
    """Returns a `GatedOutput`'s measurements for each row; empty without a gate."""
    if not isinstance(output, GatedOutput) or output.closing_positions is None:
        return [{}] * len(output.sequences)
    closings = [None if closing < 0 else closing for closing in output.closing_positions.tolist()]
    divergences = [[]] * len(closings) if output.kl is None else [row[~row.isnan()].tolist() for row in output.kl]
    band = output.dead_band or 0.0
    return [gate_record(values, band, closing) for values, closing in zip(divergences, closings, strict=True)]


def gate_record(divergences: Sequence[float], dead_band: float, closing: int | None) -> dict[str, Any]:
    """Returns a gate's measurements on one row, as in `complete`."""
    return {
        "kl": [_rounded(value) for value in divergences],
        "cumulative_kl": _rounded(sum(max(value - dead_band, 0.0) for value in divergences)),
        **({"dead_band": dead_band} if dead_band else {}),
        "closing_position": closing,
    }


def _rounded(nats: float) -> float:
    """Rounds to six digits: float32 has no more, and a divergence, a sum of differences, has fewer."""
    return float(f"{nats:.6g}")
