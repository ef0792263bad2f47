"""Gated generation against its definition, computed slowly: no cache, no padding, a pass a token and model."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import pytest
import torch
from gated_batches import (
    BUDGET,
    PAD,
    PROMPTS,
    TinyModel,
    batch,
    randomised,
    watched,
)
from torch.distributions import Categorical

from interventions import PrefixReftModel
from interventions.gates import Direction, KLGate, TokenGate
from interventions.generation import GatedOutput, Handoff


@dataclass
class Slow:
    """One row: its tokens, who drew them, and what that was decided by."""

    tokens: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    closing: int = -1


def acting_logits(reft_model: PrefixReftModel, text: list[int], prompt_length: int, num_columns: int) -> torch.Tensor:
    """Of the next token, interventions acting on those of the first columns that the adapter's positions name."""
    positions = reft_model.prefix_config.positions
    is_named = {
        "all": lambda column: True,
        "prompt": lambda column: column < prompt_length,
        "solution": lambda column: column >= prompt_length - 1,
        "generated": lambda column: column >= prompt_length,
    }[positions]
    mask = [column < num_columns and is_named(column) for column in range(len(text))]
    return reft_model(torch.tensor([text]), intervention_mask=torch.tensor([mask]), use_cache=False).logits[0, -1]


def divergence(mod: torch.Tensor, base: torch.Tensor, direction: Direction) -> float:
    p, q = (mod, base) if direction == "mod||base" else (base, mod)
    p, q = (Categorical(logits=logits.double()) for logits in (p, q))
    return torch.distributions.kl_divergence(p, q).item()


def counted(kl: Sequence[float], gate: KLGate | TokenGate) -> float:
    band = gate.dead_band or 0.0 if isinstance(gate, KLGate) else 0.0
    return sum(max(value - band, 0.0) for value in kl)


@torch.no_grad()
def slow_row(
    reft_model: PrefixReftModel,
    prompt: list[int],
    gate: KLGate | TokenGate,
    handoff: Handoff,
    ends: Sequence[int],
    budget: int,
    path: Sequence[int] | None = None,
) -> Slow:
    """One row, no padding, no cache: every token from forward passes over the whole text. Greedy, or along a path."""
    if isinstance(gate, TokenGate):
        gate = KLGate(math.inf, max_tokens=gate.num_tokens)
    row = Slow()
    acting = 0  # columns that stay intervened after the gate has closed
    for step in range(budget):
        text = prompt + row.tokens
        base = reft_model.model(torch.tensor([text]), use_cache=False).logits[0, -1]
        drawing = base
        if row.closing < 0 and step == gate.max_tokens:
            row.closing = step
            acting = len(text) - 1 if step else 0
        if row.closing < 0:
            mod = acting_logits(reft_model, text, len(prompt), len(text))
            row.kl.append(divergence(mod, base, gate.direction))
            if counted(row.kl, gate) <= gate.threshold or step < gate.min_tokens:
                drawing = mod
            else:
                row.closing = step
                acting = len(text)
        elif handoff == "keep" and acting:
            drawing = acting_logits(reft_model, text, len(prompt), acting)
        row.logits.append(drawing)
        row.tokens.append(int(drawing.argmax()) if path is None else path[step])
        if row.tokens[-1] in ends:
            break
    return row


def assert_as_defined(
    output: GatedOutput,
    reft_model: PrefixReftModel,
    prompts: Sequence[list[int]],
    gate: KLGate | TokenGate,
    handoff: Handoff = "base",
    ends: Sequence[int] = (),
    is_sampled: bool = False,
) -> list[Slow]:
    """Tokens, logits, divergences and closing positions of all rows; returns the rows computed slowly."""
    width = max(map(len, prompts))
    drawn = output.sequences[:, width:].tolist()
    assert torch.equal(output.sequences[:, :width], batch(prompts)["input_ids"])
    rows = [
        slow_row(reft_model, prompt, gate, handoff, ends, len(path), path if is_sampled else None)
        for prompt, path in zip(prompts, drawn, strict=True)
    ]
    longest = max(len(row.tokens) for row in rows)
    assert drawn == [row.tokens + [PAD] * (longest - len(row.tokens)) for row in rows]
    logits = torch.stack(output.logits, dim=1)
    for index, row in enumerate(rows):
        found = logits[index, : len(row.tokens)]
        torch.testing.assert_close(found.double(), torch.stack(row.logits).double(), rtol=0, atol=1e-5)
    assert output.closing_positions.tolist() == [row.closing for row in rows]
    steps = max(len(row.kl) for row in rows)
    if steps:
        kl = torch.tensor([row.kl + [math.nan] * (steps - len(row.kl)) for row in rows], dtype=torch.float64)
        torch.testing.assert_close(output.kl.double(), kl, rtol=0, atol=1e-5, equal_nan=True)
        found = [counted(row.kl, gate) for row in rows]
        torch.testing.assert_close(output.cumulative_kl.double(), torch.tensor(found).double(), rtol=0, atol=1e-5)
    else:
        assert output.kl is None
    return rows


def random_gate(chance: random.Random) -> KLGate | TokenGate:
    if chance.random() < 0.15:
        return TokenGate(chance.randint(1, BUDGET + 1))
    fewest, most = sorted(chance.choices(range(BUDGET), k=2))
    return KLGate(
        threshold=10 ** chance.uniform(-2.5, 0.7),
        direction=chance.choice(get_args(Direction)),
        min_tokens=fewest if chance.random() < 0.3 else 0,
        max_tokens=most if chance.random() < 0.3 else None,
        dead_band=chance.choice([None, 0.01, 0.3]),
    )


ADAPTERS = [("red", "ffn_up"), ("red", "attn_v"), ("loreft", "block"), ("loreft", "ffn_down")]


@pytest.mark.parametrize("group", range(10))
def test_twenty_random_cases_are_as_defined(tiny_model: TinyModel, group: int) -> None:
    chance = random.Random(group)
    model = tiny_model(("Llama", "Qwen2")[group % 2]).double()
    closings: list[int] = []
    lengths: set[int] = set()
    for case in range(20):
        intervention, site = chance.choice(ADAPTERS)
        reft_model = randomised(
            model,
            seed=case,
            scale=chance.uniform(0.1, 0.4),
            intervention=intervention,
            site=site,
            positions=chance.choice(["all", "solution", "generated", "prompt"]),
        )
        prompts = [chance.choices(range(3, 64), k=chance.randint(1, 7)) for _ in range(chance.randint(1, 4))]
        ends = chance.sample(range(1, 64), k=chance.choice([1, 4, 8]))
        gate, handoff, is_sampled = random_gate(chance), chance.choice(get_args(Handoff)), chance.random() < 0.4
        output = watched(
            reft_model,
            gate,
            prompts,
            handoff=handoff,
            eos_token_id=ends,
            do_sample=is_sampled,
            top_k=0 if is_sampled else None,
            output_logits=True,
        )
        rows = assert_as_defined(output, reft_model, prompts, gate, handoff, ends, is_sampled)
        reft_model.unload()
        closings += [row.closing for row in rows]
        lengths |= {len(row.tokens) for row in rows}
    assert closings.count(-1) >= 5, "some gates never close"
    assert closings.count(0) <= len(closings) / 2, "not all close at once"
    assert len(set(closings)) >= 6, "closing positions vary"
    assert len(lengths) >= 5, "rows end at different times"


@pytest.mark.parametrize("handoff", get_args(Handoff))
@pytest.mark.parametrize("family", ["Mistral", "Gemma2", "Gemma3", "Qwen3"])
def test_windows_shorter_than_the_text_are_as_defined(tiny_model: TinyModel, family: str, handoff: Handoff) -> None:
    changes = {"use_sliding_window": True, "max_window_layers": 1} if family == "Qwen3" else {}
    model = tiny_model(family, sliding_window=4, **changes)
    if family != "Gemma2":  # its attention, eager, is NaN for padding in float64, in stock transformers too
        model = model.double()
    reft_model = randomised(model, scale=0.2)
    whole = watched(reft_model, KLGate(math.inf))
    assert any(layer.is_sliding for layer in whole.past_key_values.layers)
    for threshold in whole.kl.cumsum(dim=1)[:, [1, 4]].mean(dim=0).tolist():
        gate = KLGate(threshold)
        output = watched(reft_model, gate, handoff=handoff, output_logits=True)
        rows = assert_as_defined(output, reft_model, PROMPTS, gate, handoff)
        assert len({row.closing for row in rows}) > 1


@pytest.mark.parametrize(
    ("family", "site", "changes"),
    [
        ("Phi3", "ffn_down", {}),
        ("GPTNeoX", "ffn_up", {}),
        ("GPTNeoX", "block", {"use_parallel_residual": False}),
        ("OPT", "model.decoder.layers.{layer}.self_attn.v_proj", {"word_embed_proj_dim": 32, "init_std": 0.2}),
    ],
)
def test_families_with_modules_of_their_own_are_as_defined(
    tiny_model: TinyModel, family: str, site: str, changes: dict[str, Any]
) -> None:
    reft_model = randomised(tiny_model(family, **changes).double(), site=site, scale=0.4)
    threshold = float(watched(reft_model, KLGate(math.inf)).kl.cumsum(dim=1)[:, 3].mean())
    output = watched(reft_model, KLGate(threshold), output_logits=True)
    rows = assert_as_defined(output, reft_model, PROMPTS, KLGate(threshold), "base")
    assert len({row.closing for row in rows}) > 1


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.3}, {"repetition_penalty": 2.0}],
    ids=lambda options: ",".join(options),
)
def test_the_gate_sees_raw_logits_whatever_the_tokens_are_sampled_by(
    tiny_model: TinyModel, options: dict[str, Any]
) -> None:
    reft_model = randomised(tiny_model().double())
    torch.manual_seed(5)
    gate = KLGate(1)
    output = watched(reft_model, gate, do_sample=True, output_logits=True, output_scores=True, **options)
    rows = assert_as_defined(output, reft_model, PROMPTS, gate, is_sampled=True)
    assert any(row.closing > 0 for row in rows)
    assert not torch.equal(torch.stack(output.scores), torch.stack(output.logits))
