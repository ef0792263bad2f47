"""Completions of prefixes: once each, by the base or an engine, scored and kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from reft_math.data.arithmetic.tokenizer import build_tokenizer
from reft_math.data.templates import get_template
from reft_math.decoding.completions import CompletionSettings
from reft_math.decoding.engine import Continuation
from reft_math.errors import Unfinished
from reft_math.models import load_model
from reft_math.scoring.evaluate import Scorer
from reft_math.training.rollouts import Prefix, Rollouts

CPU = torch.device("cpu")


@pytest.fixture
def settings() -> CompletionSettings:
    tokenizer = build_tokenizer()
    template = get_template("auto", tokenizer)
    return CompletionSettings(tokenizer, template, [int(tokenizer.eos_token_id)], max_new_tokens=24)


@pytest.fixture
def prefixes(settings: CompletionSettings) -> list[Prefix]:
    texts = ["Let us go step by", "The answer is 12.\n"]
    questions = ["Tom has 12 pens. How many pens does Tom have now?", "Anna has 7 more. How many?"]
    found = []
    for number, prompt in enumerate(settings.prompts(questions)):
        for text in texts:
            tokens = settings.tokenizer.encode(text, add_special_tokens=False)[:5]
            found.append(Prefix(f"problem/{number}", "12", prompt.tolist(), tokens))
    return found


def test_completions_are_the_bases_own_and_made_once(
    settings: CompletionSettings, prefixes: list[Prefix], tmp_path: Path
) -> None:
    base = load_model("arithmetic")
    calls = []

    def generate(inputs: torch.Tensor, **kwargs: Any) -> Any:
        calls.append(len(inputs))
        return base.generate(inputs, **kwargs)

    with Scorer(is_numeric=True) as score:
        rollouts = Rollouts(generate, settings, score, tmp_path / "rollouts.jsonl", 3, CPU)
        records = rollouts([*prefixes, prefixes[0]])
        assert sum(calls) == len(prefixes), "the repeated one is not completed again"
        assert records[-1] is records[0]
        for prefix, record in zip(prefixes, records, strict=False):
            inputs = torch.tensor([[*prefix.prompt_ids, *prefix.token_ids]])
            stock = base.generate(inputs, max_new_tokens=24 - len(prefix.token_ids), do_sample=False)
            text = settings.text([*prefix.token_ids, *stock[0, inputs.shape[1] :].tolist()])
            assert record["completion"] == text
            assert record["correct"] == score([("12", text)])[0]["correct"]
            assert record["problem"] == prefix.problem
        again = Rollouts(generate, settings, score, tmp_path / "rollouts.jsonl", 3, CPU)
        assert again(prefixes) == records[:-1]
        assert sum(calls) == len(prefixes), "nor by a resumed run"


def test_a_prefix_that_ends_is_a_completion(
    settings: CompletionSettings, prefixes: list[Prefix], tmp_path: Path
) -> None:
    def generate(*_: Any, **__: Any) -> Any:
        raise AssertionError("nothing is left to complete")

    tokens = [*settings.tokenizer.encode("#### 12", add_special_tokens=False), *settings.end_token_ids]
    prefix = Prefix("a", "12", prefixes[0].prompt_ids, tokens)
    with Scorer(is_numeric=True) as score:
        (record,) = Rollouts(generate, settings, score, tmp_path / "r.jsonl", 3, CPU)([prefix])
    assert (record["completion"], record["num_tokens"], record["correct"]) == ("#### 12", len(tokens), True)


class Server:
    """An engine that writes a fixed answer, and after ``good`` of them refuses."""

    def __init__(self, good: int) -> None:
        self.good, self.asked = good, 0

    def complete(self, prompts: Sequence[list[int]], max_tokens: Sequence[int], *_: Any) -> list[Continuation]:
        self.asked += len(prompts)
        written = [Continuation(" #### 12", 4, finished=True)] * min(len(prompts), self.good)
        if len(written) < len(prompts):
            raise Unfinished("the engine refuses", dict(enumerate(written)))
        return written


def test_what_an_engine_completed_before_it_failed_is_kept(
    settings: CompletionSettings, prefixes: list[Prefix], tmp_path: Path
) -> None:
    path = tmp_path / "rollouts.jsonl"
    with Scorer(is_numeric=True) as score:
        first: Any = Server(good=3)
        with pytest.raises(Unfinished, match="refuses"):
            Rollouts(None, settings, score, path, 3, CPU, first)(prefixes)  # type: ignore[arg-type]
        assert len(path.read_text().splitlines()) == 3
        second: Any = Server(good=9)
        records = Rollouts(None, settings, score, path, 3, CPU, second)(prefixes)  # type: ignore[arg-type]
    assert second.asked == 1, "only what was missing, all of it at once"
    assert all(record["correct"] for record in records)
    assert [json.loads(line)["prefix_tokens"] for line in path.read_text().splitlines()] == [5] * 4
