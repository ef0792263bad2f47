from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from reft_math.data.arithmetic.tokenizer import build_tokenizer
from reft_math.data.problem import Problem
from reft_math.data.templates import TEMPLATES
from reft_math.decoding.completions import CompletionSettings
from reft_math.probes.handoff import LENGTHS, continuations, hand_over, handoff_lines, handoff_table, problem_sets

END = 2
PROMPTS = [torch.tensor(row) for row in ([1, 9, 8, 7], [1, 5], [1, 11, 12, 13, 14, 15, 16, 17], [1])]


@pytest.fixture
def decoding() -> CompletionSettings:
    return CompletionSettings(build_tokenizer(), TEMPLATES["chat"], [END], max_new_tokens=24)


def without_cache(
    model: PreTrainedModel, decoding: CompletionSettings, prompt: torch.Tensor, prefix: list[int]
) -> list[int]:
    """One row, no padding, every forward pass from the start."""
    token_ids = [*prompt.tolist(), *prefix]
    while len(token_ids) < len(prompt) + decoding.max_new_tokens:
        token_ids.append(int(model(torch.tensor([token_ids]), use_cache=False).logits[0, -1].argmax()))
        if token_ids[-1] in decoding.end_token_ids:
            break
    return token_ids[len(prompt) :]


def until_end(token_ids: list[int]) -> list[int]:
    return token_ids[: token_ids.index(END) + 1] if END in token_ids else token_ids


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("Llama", {}),
        ("Qwen2", {}),
        ("Mistral", {"sliding_window": 6}),
        ("Gemma3", {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    ],
)
def test_a_continuation_from_the_cache_is_generation_without_one(
    tiny_model: Callable[..., PreTrainedModel], decoding: CompletionSettings, family: str, changes: dict[str, Any]
) -> None:
    """Prompts of different lengths, prefixes longer than a sliding window, other k's in every row."""
    model = tiny_model(family, **changes).double()
    prefixes = [torch.randint(3, 64, (length,)).tolist() for length in (21, 9, 12, 18)]
    lengths = [[0, 1, 4, 20], [8], [0, 4], [1, 17]]
    drawn = iter(continuations(model, decoding, PROMPTS, prefixes, lengths))
    for prompt, prefix, ks in zip(PROMPTS, prefixes, lengths, strict=True):
        for k in ks:
            found = until_end(next(drawn))
            assert found == without_cache(model, decoding, prompt, prefix[:k])
            assert found[:k] == prefix[:k]
    assert next(drawn, None) is None


def test_rows_that_end_early_leave_the_others_alone(
    tiny_model: Callable[..., PreTrainedModel], decoding: CompletionSettings
) -> None:
    model = tiny_model().double()
    texts = [without_cache(model, decoding, prompt, []) for prompt in PROMPTS]
    # A token that some greedy texts hold and others do not becomes the end token.
    end = next(token for token in texts[0] if any(token not in text for text in texts[1:]))
    decoding.end_token_ids.append(end)
    drawn = continuations(model, decoding, PROMPTS, [[3] * 9] * 4, [[0, 8]] * 4)
    expected = [without_cache(model, decoding, prompt, prefix) for prompt in PROMPTS for prefix in ([], [3] * 8)]
    assert {end in row for row in expected} == {True, False}
    assert [row[: len(text)] for row, text in zip(drawn, expected, strict=True)] == expected
    assert all(token == 0 for row, text in zip(drawn, expected, strict=True) for token in row[len(text) :])


def test_nothing_asked_is_nothing_drawn(
    tiny_model: Callable[..., PreTrainedModel], decoding: CompletionSettings
) -> None:
    assert continuations(tiny_model(), decoding, [], [], []) == []


def answer(name: str, token_ids: list[int], correct: bool) -> dict[str, Any]:
    about = {"completion": str(token_ids), "num_tokens": len(token_ids), "finished": token_ids[-1] == END}
    return {"id": name, "token_ids": token_ids, "correct": correct, **about}


def test_only_what_is_not_known_is_drawn(
    tiny_model: Callable[..., PreTrainedModel], decoding: CompletionSettings, tmp_path: Path
) -> None:
    """The base's own prefix ends as the base's answer, a whole answer stands, and the base goes on from the rest."""
    model, problem = tiny_model(vocab_size=len(decoding.tokenizer)).double(), Problem("p", "Anna has 3 apples.", "3")
    (prompt,) = decoding.prompts([problem.question])
    base = answer("p", without_cache(model, decoding, prompt, []), False)
    source = answer("p", [*base["token_ids"][:1], 9, 8, 7, 6, 5, 4, 3, 9, END], True)

    def score(pairs: Any) -> list[dict[str, Any]]:
        return [{"correct": len(completion) % 2 == 0} for _, completion in pairs]

    records = hand_over([problem], [source], [base], model, decoding, score, tmp_path / "r.jsonl", "r", 4)
    assert [record["id"] for record in records] == [f"p@{k}" for k in LENGTHS]
    assert [record["continued"] for record in records] == [k in (4, 8) for k in LENGTHS]
    for record in records:
        if record["continued"]:
            token_ids = without_cache(model, decoding, prompt, source["token_ids"][: record["k"]])
            text = decoding.text(token_ids[: decoding.until_end(token_ids)])
            assert (record["completion"], record["num_tokens"]) == (text, len(token_ids))
            assert record["finished"] == (token_ids[-1] == END)
            assert record["correct"] == (len(text) % 2 == 0)
        else:
            known = base if record["k"] <= 1 else source
            assert {name: record[name] for name in known if name in record and name != "id"} == {
                name: known[name] for name in ("completion", "num_tokens", "finished", "correct")
            }


def test_tables_by_hand() -> None:
    answers = {
        "base": [answer("a", [3, END], True), answer("b", [4, END], False), answer("c", [5, END], True)],
        "always_on": [answer(name, [6, END], correct) for name, correct in zip("abc", (True, True, True), strict=True)],
    }
    sets = problem_sets(answers)
    assert sets == {
        "all problems": {"a", "b", "c"},
        "problems always_on gets wrong": set(),
        "problems base gets wrong": {"b"},
    }
    records = [
        {"problem": name, "k": k, "continued": k == 4, "correct": name == "a" or k >= 8}
        for name in "abc"
        for k in LENGTHS
    ]
    table = handoff_table(sets, {"base": records})
    assert [(row["problems"], row["k"]) for row in table] == [
        (problems, k) for problems in ("all problems", "problems base gets wrong") for k in LENGTHS
    ]
    first, at_4, at_8 = table[0], table[2], table[3]
    assert (first["continued"], first["correct"], first["total"], first["accuracy"]) == (0, 1, 3, 1 / 3)
    assert (at_4["continued"], at_4["correct"], at_8["correct"]) == (3, 1, 3)
    assert first["low"] == pytest.approx(0.0615, abs=1e-4)  # Wilson's by hand: (1/3 + z²/6 ± …) / (1 + z²/3)
    assert first["high"] == pytest.approx(0.7923, abs=1e-4)
    lines = handoff_lines(table, "all problems")
    assert lines[0] == ["k", "base"]
    assert lines[1] == ["0", "33.3% (6.1%-79.2%)"]
    assert len(lines) == 1 + len(LENGTHS)
