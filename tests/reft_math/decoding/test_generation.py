"""Gated generation against stock ``generate``, against stock pyvene, and against its definition computed slowly."""

from __future__ import annotations

import math
import random
import string
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pyreft
import pytest
import tokenizers
import torch
from torch.distributions import Categorical
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    StaticCache,
    TemperatureLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from interventions import PrefixReftConfig, PrefixReftModel, get_prefix_reft_model
from reft_math.decoding.gate import Direction, KLGate, TokenGate
from reft_math.decoding.generation import GatedOutput, Handoff, gated_generate
from reft_math.errors import UserError

TinyModel = Callable[..., PreTrainedModel]
PAD = 0
UNDRAWN = 64  # an end token beyond the vocabulary: with one, rows that have ended otherwise are padded
PROMPTS = [[5, 9, 33, 41, 17, 8, 60], [7, 21, 3], [12]]
WIDTH = 7
BUDGET = 10
ENDLESS: dict[str, Any] = {"max_new_tokens": BUDGET, "eos_token_id": None}
GATES = ["off", "always", "prompt", "tokens:1", "tokens:4", "kl:0", "kl:0.5", "kl:1.2,max=5", "kl:inf"]
PAIRED = GATES[3:]  # gates that run the two models side by side


@pytest.fixture
def tiny_model(tiny_model: TinyModel) -> TinyModel:
    return partial(tiny_model, num_hidden_layers=2)


def randomised(model: PreTrainedModel, seed: int = 1, scale: float = 0.2, **config: Any) -> PrefixReftModel:
    """With LoReFT in the residual stream, where not told otherwise: it changes the text from the first token on."""
    torch.manual_seed(seed)  # LoReFT starts from random directions
    config = {"intervention": "loreft", "site": "block", **config}
    reft_model = get_prefix_reft_model(model, PrefixReftConfig(**config))
    with torch.no_grad():
        for parameter in reft_model.parameters():
            parameter.add_(torch.randn(parameter.shape) * scale)
    return reft_model


def batch(prompts: Sequence[list[int]] = PROMPTS, pad: int = PAD) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    padding = [width - len(prompt) for prompt in prompts]
    return {
        "input_ids": torch.tensor([[pad] * gap + prompt for gap, prompt in zip(padding, prompts, strict=True)]),
        "attention_mask": torch.tensor([[0] * gap + [1] * (width - gap) for gap in padding]),
    }


def watched(reft_model: PrefixReftModel, gate: Any, prompts: Sequence[list[int]] = PROMPTS, **options: Any) -> Any:
    """What a gate saw on the way."""
    settings = {**ENDLESS, "return_dict_in_generate": True, **options}
    return reft_model.generate(**batch(prompts), gate=gate, **settings)


def seeded(generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    torch.manual_seed(11)
    return generate(*args, **kwargs)


def ends_of(sequences: torch.Tensor, *places: tuple[int, int]) -> list[int]:
    """The tokens that rows drew at these steps, to end them there."""
    return [int(sequences[row, WIDTH + step]) for row, step in places]


# --- the definition, computed slowly -----------------------------------------------------------------------------


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
        "generated": lambda column: column >= prompt_length,
    }[positions]
    mask = [column < num_columns and is_named(column) for column in range(len(text))]
    return reft_model(torch.tensor([text]), intervention_mask=torch.tensor([mask]), use_cache=False).logits[0, -1]


def divergence(mod: torch.Tensor, base: torch.Tensor, direction: Direction) -> float:
    p, q = (mod, base) if direction == "mod||base" else (base, mod)
    p, q = (Categorical(logits=logits.double()) for logits in (p, q))
    return torch.distributions.kl_divergence(p, q).item()


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
            if sum(row.kl) <= gate.threshold or step < gate.min_tokens:
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
        torch.testing.assert_close(output.cumulative_kl.double(), kl.nansum(dim=1), rtol=0, atol=1e-5)
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
            positions=chance.choice(["all", "all", "generated", "prompt"]),
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


# --- closed: the base --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handoff", get_args(Handoff))
def test_a_gate_that_never_opens_is_the_base_and_measures_nothing(tiny_model: TinyModel, handoff: Handoff) -> None:
    model = tiny_model()
    output = watched(randomised(model), "kl:inf,max=0", handoff=handoff)
    assert torch.equal(output.sequences, model.generate(**batch(), **ENDLESS))
    assert output.closing_positions.tolist() == [0, 0, 0]
    assert output.kl is None
    assert output.cumulative_kl is None


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
@pytest.mark.parametrize("do_sample", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    ("gate", "positions"), [("off", "all"), ("kl:0", "all"), ("kl:0", "prompt"), ("kl:0", "generated")]
)
def test_off_and_threshold_zero_are_the_base_token_for_token(
    tiny_model: TinyModel, family: str, do_sample: bool, gate: str, positions: str
) -> None:
    model = tiny_model(family)
    reft_model = randomised(model, positions=positions)
    settings: dict[str, Any] = {**ENDLESS, "max_new_tokens": 24, "do_sample": do_sample, "top_k": None}
    endless = seeded(model.generate, **batch(), **settings)
    for ends in (None, ends_of(endless, (0, 0), (1, 5))):
        settings["eos_token_id"] = ends
        stock = seeded(model.generate, **batch(), **settings)
        assert torch.equal(seeded(reft_model.generate, **batch(), gate=gate, **settings), stock)
        assert not torch.equal(seeded(reft_model.generate, **batch(), gate="always", **settings), stock)


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_threshold_zero_in_bfloat16_differs_from_the_base_in_ties_only(tiny_model: TinyModel, family: str) -> None:
    """Twice the rows may round otherwise. Where that shows, both tokens must be best within the rounding seen there."""
    for seed in range(4):
        model = tiny_model(family)
        exact = tiny_model(family).double()
        prompts = [random.Random(seed + row).choices(range(3, 64), k=(9, 3, 1, 6)[row]) for row in range(4)]
        exact.load_state_dict(model.bfloat16().state_dict())
        stock = model.generate(**batch(prompts), **ENDLESS)
        found = randomised(model, seed=seed).generate(**batch(prompts), gate="kl:0", **ENDLESS)
        for prompt, expected, tokens in zip(prompts, stock.tolist(), found.tolist(), strict=True):
            column = next((c for c, (a, b) in enumerate(zip(expected, tokens, strict=True)) if a != b), None)
            if column is not None:
                text = torch.tensor([prompt + expected[max(map(len, prompts)) : column]])
                rounded, true = (it(text).logits[0, -1].double() for it in (model, exact))
                gap = (true[expected[column]] - true[tokens[column]]).abs()
                assert gap <= 2 * (rounded - true).abs().max()
        assert (found == stock).float().mean() > 0.5, "ties are rare"


# --- open: interventions on their own ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
@pytest.mark.parametrize(("intervention", "site"), [("red", "ffn_up"), ("loreft", "block")])
@pytest.mark.parametrize("positions", ["all", "generated", "prompt"])
def test_threshold_infinity_is_always_and_what_stock_pyvene_generates(
    tiny_model: TinyModel, tmp_path: Path, family: str, intervention: str, site: str, positions: str
) -> None:
    model = tiny_model(family)
    reft_model = randomised(model, scale=0.5, intervention=intervention, site=site, positions=positions)
    always = reft_model.generate(**batch(), gate="always", **ENDLESS)
    assert torch.equal(reft_model.generate(**batch(), gate="kl:inf", **ENDLESS), always)
    assert not torch.equal(reft_model.generate(**batch(), gate="off", **ENDLESS), always)
    sampled = {**ENDLESS, "do_sample": True, "top_k": None}
    first, second = (seeded(reft_model.generate, **batch(), gate=gate, **sampled) for gate in ("always", "kl:inf"))
    assert torch.equal(first, second)
    assert not torch.equal(first, always)

    reft_model.save_pretrained(tmp_path)
    stock = pyreft.ReftModel.load(str(tmp_path), model)
    columns = [[list(range(WIDTH))] * len(PROMPTS)] * len(stock.interventions)
    where: dict[str, Any] = {
        "all": {"intervene_on_prompt": True, "unit_locations": None},
        "generated": {"intervene_on_prompt": False, "unit_locations": None},
        "prompt": {"intervene_on_prompt": True, "unit_locations": {"sources->base": (None, columns)}},
    }[positions]
    _, theirs = stock.generate(batch(), **where, **ENDLESS)
    assert torch.equal(theirs, always)
    assert torch.equal(reft_model.generate(**batch(), gate="kl:inf", **ENDLESS), always), "hooks come back"


def test_gate_prompt_is_pyrefts_way_and_one_token_that_keeps_the_cache(tiny_model: TinyModel, tmp_path: Path) -> None:
    model = tiny_model()
    reft_model = randomised(model, intervention="red", site="attn_v")
    found = reft_model.generate(**batch(), gate="prompt", **ENDLESS)
    assert torch.equal(reft_model.generate(**batch(), gate="tokens:1", handoff="keep", **ENDLESS), found)
    for other in ("always", "off", "tokens:1"):
        assert not torch.equal(reft_model.generate(**batch(), gate=other, **ENDLESS), found)
    reft_model.save_pretrained(tmp_path)
    stock = pyreft.ReftModel.load(str(tmp_path), model)
    columns = [[list(range(WIDTH))] * len(PROMPTS)] * len(stock.interventions)
    locations = {"sources->base": (None, columns)}
    _, theirs = stock.generate(batch(), unit_locations=locations, intervene_on_prompt=True, **ENDLESS)
    assert torch.equal(theirs, found)


# --- between: what a gate does -----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_tokens", [1, 4, 9])
def test_n_tokens_of_the_one_and_what_the_base_writes_after_that_text(tiny_model: TinyModel, num_tokens: int) -> None:
    """With processors that look back over the text, which stock ``generate`` given prompt and prefix has as well."""
    model = tiny_model()
    reft_model = randomised(model)
    settings: dict[str, Any] = {"eos_token_id": None, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2}
    prefix = reft_model.generate(**batch(), gate="always", max_new_tokens=num_tokens, **settings)
    attention = torch.nn.functional.pad(batch()["attention_mask"], (0, num_tokens), value=1)
    rest = {**settings, "max_new_tokens": BUDGET - num_tokens}
    expected = model.generate(prefix, attention_mask=attention, **rest)
    found = reft_model.generate(**batch(), gate=f"tokens:{num_tokens}", max_new_tokens=BUDGET, **settings)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("direction", get_args(Direction))
def test_the_threshold_is_inclusive_to_the_last_bit(tiny_model: TinyModel, direction: Direction) -> None:
    reft_model = randomised(tiny_model().double())
    kl = watched(reft_model, KLGate(math.inf, direction), PROMPTS[:1]).kl[0]
    for step in (0, 3):
        threshold = kl[: step + 1].cumsum(dim=0)[-1].item()
        below = watched(reft_model, KLGate(math.nextafter(threshold, 0), direction), PROMPTS[:1])
        at = watched(reft_model, KLGate(threshold, direction), PROMPTS[:1])
        assert below.closing_positions.tolist() == [step]
        assert at.closing_positions.tolist() == [step + 1]


@pytest.mark.parametrize("handoff", get_args(Handoff))
@pytest.mark.parametrize("positions", ["all", "generated", "prompt"])
def test_a_row_does_not_depend_on_its_batch(tiny_model: TinyModel, handoff: Handoff, positions: str) -> None:
    chance = random.Random(0)
    prompts = [*PROMPTS, *(chance.choices(range(3, 64), k=length) for length in (2, 5, 11))]
    width = max(map(len, prompts))
    reft_model = randomised(tiny_model().double(), intervention="red", site="attn_v", positions=positions)
    whole = watched(reft_model, "kl:inf", prompts)
    threshold = whole.kl.cumsum(dim=1)[:, 3].median().item() * 1.01  # at no row's own sum, to the last bit or not
    options: dict[str, Any] = {"handoff": handoff, "eos_token_id": int(whole.sequences[0, width + 1])}
    together = watched(reft_model, KLGate(threshold), prompts, **options)
    assert len(set(together.closing_positions.tolist())) >= 3
    for index, prompt in enumerate(prompts):
        alone = watched(reft_model, KLGate(threshold), [prompt], **options)
        tokens, expected = alone.sequences[0, len(prompt) :].tolist(), together.sequences[index, width:].tolist()
        assert expected == tokens + [PAD] * (len(expected) - len(tokens))
        assert alone.closing_positions[0] == together.closing_positions[index]
        torch.testing.assert_close(alone.cumulative_kl[0], together.cumulative_kl[index])


def test_a_row_that_ends_before_its_gate_closes_has_no_closing_position(tiny_model: TinyModel) -> None:
    """The others go on undisturbed, whether in pairs or, later, from the base."""
    reft_model = randomised(tiny_model().double())
    endless = watched(reft_model, "tokens:6")
    ends = ends_of(endless.sequences, (0, 2))
    assert not set(ends) & set(endless.sequences[1:, WIDTH:].flatten().tolist())
    output = watched(reft_model, "tokens:6", eos_token_id=ends)
    assert output.closing_positions.tolist() == [-1, 6, 6]
    assert output.sequences[0, WIDTH + 3 :].tolist() == [PAD] * (BUDGET - 3)
    assert torch.equal(output.sequences[1:], endless.sequences[1:])
    assert output.kl[0].isnan().tolist() == [False] * 3 + [True] * 3
    assert output.cumulative_kl[0] == output.kl[0, :3].sum()


def test_a_row_whose_gate_closes_at_its_last_token_has_closed(tiny_model: TinyModel) -> None:
    reft_model = randomised(tiny_model().double())
    closed = watched(reft_model, "kl:0")
    ends = ends_of(closed.sequences, *((row, 0) for row in range(3)))
    output = watched(reft_model, "kl:0", eos_token_id=ends)
    assert output.sequences.shape[1] == WIDTH + 1
    assert output.closing_positions.tolist() == [0, 0, 0]


@pytest.mark.parametrize("gate", ["tokens:10", "tokens:11", "kl:0,min=10", "kl:0,min=500"])
def test_a_gate_open_for_the_whole_length_never_closes(tiny_model: TinyModel, gate: str) -> None:
    reft_model = randomised(tiny_model())
    output = watched(reft_model, gate)
    assert torch.equal(output.sequences, reft_model.generate(**batch(), gate="always", **ENDLESS))
    assert output.closing_positions.tolist() == [-1, -1, -1]
    assert output.kl.shape == (3, BUDGET)


@pytest.mark.parametrize("gate", GATES)
def test_a_prompt_that_fills_the_context_has_its_one_token(tiny_model: TinyModel, gate: str) -> None:
    model = tiny_model(max_position_embeddings=WIDTH)
    reft_model = randomised(model)
    closed, opened = (reft_model.generate(**batch(), gate=end, max_new_tokens=1) for end in ("off", "always"))
    assert (closed[:, WIDTH] != opened[:, WIDTH]).any()
    with rows_run(model) as rows:
        output = watched(reft_model, gate, max_new_tokens=1)
    assert len(rows) == 1
    is_closed = output.closing_positions == 0 if gate in PAIRED else torch.full((3,), gate == "off")
    assert torch.equal(output.sequences, torch.where(is_closed[:, None], closed, opened))


def test_calls_share_no_state(tiny_model: TinyModel) -> None:
    model = tiny_model()
    reft_model = randomised(model)
    before = model.generation_config.to_dict()
    calls = [{"gate": "kl:0.5"}, {"gate": "kl:0.5", "handoff": "keep"}, {"gate": "tokens:3"}, {"gate": "prompt"}]
    first = [watched(reft_model, **call) for call in calls]
    again = [watched(reft_model, **call) for call in reversed(calls)][::-1]
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.sequences, other.sequences)
    assert torch.equal(first[0].cumulative_kl, again[0].cumulative_kl)
    assert model.generation_config.to_dict() == before


def test_until_closed_stops_where_the_base_would_take_over(tiny_model: TinyModel) -> None:
    model = tiny_model()
    reft_model = randomised(model)
    route = {"custom_generate": gated_generate, "interventions": reft_model}
    for gate in ("kl:1", "tokens:4"):
        whole = watched(reft_model, gate)
        found = model.generate(**batch(), **route, gate=gate, until_closed=True, **ENDLESS)
        drawn = 4 if gate == "tokens:4" else int(whole.closing_positions.max()) + 1
        assert 1 < drawn < BUDGET
        assert torch.equal(found, whole.sequences[:, : WIDTH + drawn])


# --- plain transformers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handoff", get_args(Handoff))
@pytest.mark.parametrize("gate", GATES)
def test_a_plain_model_generates_the_same_given_the_loop(tiny_model: TinyModel, gate: str, handoff: Handoff) -> None:
    model = tiny_model()
    reft_model = randomised(model, gate="kl:0.5")
    ends = ends_of(reft_model.generate(**batch(), gate=gate, **ENDLESS), (1, 5))
    settings: dict[str, Any] = {"max_new_tokens": BUDGET, "eos_token_id": ends, "do_sample": True, "handoff": handoff}
    loop = {"custom_generate": gated_generate, "interventions": reft_model}
    expected = seeded(reft_model.generate, **batch(), gate=gate, **settings)
    assert torch.equal(seeded(model.generate, **batch(), **loop, gate=gate, **settings), expected)
    if gate == "kl:0.5":
        assert torch.equal(seeded(model.generate, **batch(), **loop, **settings), expected), "the adapter's own gate"


@pytest.mark.parametrize("gate", ["always", "prompt", "tokens:4", "kl:0.5"])
def test_the_loop_finds_its_hooks_again_after_a_stock_models_call(
    tiny_model: TinyModel, tmp_path: Path, gate: str
) -> None:
    """pyvene clears every hook of the base at its calls; nobody would notice an adapter that is no longer there."""
    model = tiny_model()
    reft_model = randomised(model)
    reft_model.save_pretrained(tmp_path)
    loop: dict[str, Any] = {"custom_generate": gated_generate, "interventions": reft_model, "gate": gate}
    expected = model.generate(**batch(), **loop, **ENDLESS)
    stock = pyreft.ReftModel.load(str(tmp_path), model)
    stock({"input_ids": batch()["input_ids"]}, unit_locations={"base": list(range(WIDTH))})
    assert torch.equal(model.generate(**batch(), **loop, **ENDLESS), expected)


# --- what generate takes -----------------------------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    {"do_sample": True, "temperature": 0.6, "top_k": 8},
    {"do_sample": True, "top_p": 0.7, "temperature": 1.5},
    {"do_sample": True, "min_p": 0.05, "top_k": None, "renormalize_logits": True},
    {"do_sample": True, "num_return_sequences": 3},
    {"repetition_penalty": 1.5},
    {"no_repeat_ngram_size": 2},
    {"bad_words_ids": [[4], [30], [51]]},
    {"forced_eos_token_id": 9},
    {"eos_token_id": list(range(20, 40)), "min_new_tokens": 3},
    {"eos_token_id": list(range(20, 40)), "do_sample": True, "num_return_sequences": 2},
    {"eos_token_id": list(range(40, 64)), "pad_token_id": 63},
    {"max_new_tokens": None, "max_length": WIDTH + 4},
    {"prefill_chunk_size": 3},
    {"cache_implementation": "static"},
    {"attention_mask": None},
    {"custom_generate": None, "assistant_model": None, "stop_strings": None, "tokenizer": None},
    {"prefix_allowed_tokens_fn": lambda row, ids: list(range(10 * row, 64))},
    {"stopping_criteria": [lambda ids, scores, **kwargs: ids[:, -1] % 3 == 0], "eos_token_id": UNDRAWN},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options))
def test_options_act_as_in_stock_generate(tiny_model: TinyModel, options: dict[str, Any]) -> None:
    """Threshold 0 has all after the first forward pass drawn by stock sampling, infinity nothing."""
    model = tiny_model()
    reft_model = randomised(model)
    settings = {**batch(), **ENDLESS, **options}
    stock = seeded(model.generate, **settings)
    assert torch.equal(seeded(reft_model.generate, gate="kl:0", **settings), stock)
    always = seeded(reft_model.generate, gate="always", **settings)
    assert torch.equal(seeded(reft_model.generate, gate="kl:inf", **settings), always)
    assert not torch.equal(stock, always)


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


def test_rows_that_end_where_nothing_pads_go_on_as_in_stock_generate(tiny_model: TinyModel) -> None:
    """A criterion has ended them, and without an end token stock ``generate`` writes on until all rows have ended.

    What is written after the end, the base writes: the gate's work is done.
    """
    model = tiny_model()
    reft_model = randomised(model)
    settings = {**batch(), **ENDLESS, "stopping_criteria": [lambda ids, scores, **kwargs: ids[:, -1] % 3 == 0]}
    stock = model.generate(**settings)
    assert torch.equal(reft_model.generate(gate="kl:0", **settings), stock)


@pytest.mark.parametrize(("gate", "stock"), [("kl:0", "off"), ("kl:inf", "always")])
def test_criteria_see_the_scores_as_in_stock_generate(tiny_model: TinyModel, gate: str, stock: str) -> None:
    reft_model = randomised(tiny_model())
    seen: list[torch.Tensor] = []

    def record(ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(scores[-1].clone())
        return torch.zeros(len(ids), dtype=torch.bool)

    for name in (stock, gate):
        watched(reft_model, name, stopping_criteria=[record], output_scores=True)
    expected, found = seen[:BUDGET], seen[BUDGET:]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("gate", ["tokens:4", "kl:1", "kl:inf"])
def test_a_gate_sees_a_row_up_to_its_end_padded_or_not(tiny_model: TinyModel, gate: str) -> None:
    reft_model = randomised(tiny_model().double())
    last = watched(reft_model, gate).sequences[0, WIDTH + 1]
    criteria = [lambda ids, scores, **kwargs: ids[:, -1] == last]
    padded, unpadded = (
        watched(reft_model, gate, stopping_criteria=criteria, eos_token_id=end) for end in (UNDRAWN, None)
    )
    assert padded.closing_positions[0] == -1
    assert torch.equal(unpadded.closing_positions, padded.closing_positions)
    torch.testing.assert_close(unpadded.cumulative_kl, padded.cumulative_kl)
    torch.testing.assert_close(unpadded.kl, padded.kl, equal_nan=True)


def test_processors_act_on_what_is_drawn_not_on_what_is_measured(tiny_model: TinyModel) -> None:
    reft_model = randomised(tiny_model().double())
    plain = watched(reft_model, "kl:1")
    sharper = watched(reft_model, "kl:1", logits_processor=LogitsProcessorList([TemperatureLogitsWarper(0.5)]))
    assert torch.equal(sharper.sequences, plain.sequences)
    assert torch.equal(sharper.kl.nan_to_num(), plain.kl.nan_to_num())
    for options in ({"suppress_tokens": plain.sequences[:, WIDTH].tolist()}, {"repetition_penalty": 3.0}):
        changed = watched(reft_model, "kl:1", **options)
        assert (changed.sequences != plain.sequences).any(dim=1).all()
        assert torch.equal(changed.kl[:, 0], plain.kl[:, 0])


def test_an_end_token_is_suppressed_until_the_shortest_length(tiny_model: TinyModel) -> None:
    reft_model = randomised(tiny_model())
    ends = ends_of(reft_model.generate(**batch(), gate="kl:1", **ENDLESS), (0, 0), (1, 1), (2, 2))
    settings = {"gate": "kl:1", "max_new_tokens": BUDGET, "eos_token_id": ends}
    shorter = reft_model.generate(**batch(), **settings)
    found = reft_model.generate(**batch(), min_new_tokens=5, **settings)
    assert shorter.shape[1] < WIDTH + 5
    assert not torch.isin(found[:, WIDTH : WIDTH + 5], torch.tensor([PAD, *ends])).any()


@pytest.mark.parametrize("gate", PAIRED)
def test_several_samples_of_a_prompt_stand_together(tiny_model: TinyModel, gate: str) -> None:
    reft_model = randomised(tiny_model().double())
    torch.manual_seed(0)
    output = watched(reft_model, gate, do_sample=True, num_return_sequences=2, top_k=None)
    inputs = batch()["input_ids"].repeat_interleave(2, dim=0)
    assert torch.equal(output.sequences[:, :WIDTH], inputs)
    assert len({tuple(row) for row in output.sequences.tolist()}) == 6
    assert output.closing_positions.shape == (6,)
    first = output.kl[:, 0].view(3, 2)
    torch.testing.assert_close(first[:, 0], first[:, 1])
    assert len(first[:, 0].unique()) == 3


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("handoff", get_args(Handoff))
def test_rows_are_padded_where_any_of_several_tokens_ended_them(
    tiny_model: TinyModel, gate: str, handoff: Handoff
) -> None:
    reft_model = randomised(tiny_model())
    endless = reft_model.generate(**batch(), gate=gate, handoff=handoff, **ENDLESS)
    ends = ends_of(endless, (0, 1), (1, 7))
    expected = endless[:, WIDTH:].tolist()
    for row in expected:
        end = next((index for index, token in enumerate(row) if token in ends), BUDGET)
        row[end + 1 :] = [PAD] * len(row[end + 1 :])
    longest = max(sum(token != PAD for token in row) for row in expected)
    found = reft_model.generate(**batch(), gate=gate, handoff=handoff, **{**ENDLESS, "eos_token_id": ends})
    assert found[:, WIDTH:].tolist() == [row[:longest] for row in expected]


@pytest.mark.parametrize("gate", ["tokens:4", "kl:0.5", "kl:inf"])
def test_padding_with_the_end_token_ends_no_row(tiny_model: TinyModel, gate: str) -> None:
    reft_model = randomised(tiny_model())
    end = ends_of(reft_model.generate(**batch(), gate=gate, **ENDLESS), (1, 5))[0]
    settings = {"gate": gate, "max_new_tokens": BUDGET, "eos_token_id": end}
    expected = reft_model.generate(**batch(), **settings)[:, WIDTH:]
    assert (expected == PAD).any()
    found = reft_model.generate(**batch(pad=end), pad_token_id=end, **settings)[:, WIDTH:]
    assert torch.equal(found, torch.where(expected == PAD, end, expected))


@pytest.mark.parametrize("gate", GATES)
def test_a_padding_token_within_a_prompt_is_attended_to(tiny_model: TinyModel, gate: str) -> None:
    reft_model = randomised(tiny_model().double(), intervention="red", site="attn_v")
    prompt = [5, PAD, 21, 7]
    alone = reft_model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, 4), gate=gate, **ENDLESS)
    found = reft_model.generate(**batch([*PROMPTS, prompt]), gate=gate, **ENDLESS)
    without = reft_model.generate(torch.tensor([[5, 21, 7]]), gate=gate, **ENDLESS)
    assert torch.equal(found[3, WIDTH:], alone[0, 4:])
    assert not torch.equal(without[0, 3:], alone[0, 4:])


def test_settings_come_from_a_generation_config_and_leave_it_as_it_was(tiny_model: TinyModel) -> None:
    model = tiny_model()
    reft_model = randomised(model)
    ends = ends_of(reft_model.generate(**batch(), gate="kl:0.5", **ENDLESS), (0, 1), (1, 7))
    expected = reft_model.generate(**batch(), gate="kl:0.5", max_new_tokens=BUDGET, eos_token_id=ends)
    config = GenerationConfig(max_new_tokens=BUDGET, eos_token_id=ends, pad_token_id=PAD)
    before = config.to_dict(), model.generation_config.to_dict()
    assert torch.equal(reft_model.generate(**batch(), gate="kl:0.5", generation_config=config), expected)
    assert (config.to_dict(), model.generation_config.to_dict()) == before
    model.generation_config.eos_token_id = ends
    short = GenerationConfig(max_new_tokens=BUDGET)
    assert torch.equal(reft_model.generate(**batch(), gate="kl:0.5", generation_config=short), expected)


@pytest.mark.parametrize("handoff", get_args(Handoff))
@pytest.mark.parametrize("gate", PAIRED)
def test_a_static_cache_gives_what_a_dynamic_one_gives(tiny_model: TinyModel, gate: str, handoff: Handoff) -> None:
    reft_model = randomised(tiny_model().double())
    dynamic = watched(reft_model, gate, handoff=handoff)
    ends = ends_of(dynamic.sequences, *((row, 1) for row in range(3)))
    for prompts, ending in ((PROMPTS, None), (PROMPTS[:2], None), (PROMPTS, ends)):
        expected, found = (
            watched(reft_model, gate, prompts, handoff=handoff, eos_token_id=ending, cache_implementation=kind)
            for kind in (None, "static")
        )
        assert torch.equal(found.sequences, expected.sequences)
        assert torch.equal(found.closing_positions, expected.closing_positions)
        assert isinstance(found.past_key_values, StaticCache)
        assert len(found.past_key_values.layers[0].keys) == len(prompts)


def test_a_cache_of_ones_own_is_filled(tiny_model: TinyModel) -> None:
    model = tiny_model()
    reft_model = randomised(model)
    cache = DynamicCache(config=model.config)
    found = reft_model.generate(**batch(), gate="kl:0.5", past_key_values=cache, **ENDLESS)
    assert torch.equal(found, reft_model.generate(**batch(), gate="kl:0.5", **ENDLESS))
    assert cache.layers[0].keys.shape[::2] == (3, WIDTH + BUDGET - 1)
    with pytest.raises(UserError, match="starts from the prompt; leave past_key_values out"):
        reft_model.generate(**batch(), gate="kl:0.5", past_key_values=cache, **ENDLESS)


def test_prompts_as_embeddings_are_an_error(tiny_model: TinyModel) -> None:
    model = tiny_model()
    prompt = batch()
    embeddings = model.get_input_embeddings()(prompt.pop("input_ids"))
    loop: dict[str, Any] = {"custom_generate": gated_generate, "interventions": randomised(model), "gate": "kl:0.5"}
    with pytest.raises(UserError, match="needs prompts as tokens; got inputs_embeds"):
        model.generate(inputs_embeds=embeddings, **prompt, **loop, **ENDLESS)


class Recorder(BaseStreamer):
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        self.heard.append(value.tolist())

    def end(self) -> None:
        self.heard.append("end")


@pytest.mark.parametrize("gate", GATES)
def test_a_streamer_hears_prompts_then_every_token_then_the_end(tiny_model: TinyModel, gate: str) -> None:
    model = tiny_model()
    reft_model = randomised(model)
    endless = reft_model.generate(**batch(), gate=gate, **ENDLESS)
    for ends in (None, ends_of(endless, (0, 1), (1, 1), (2, 1))):
        settings = {**ENDLESS, "eos_token_id": ends}
        direct, routed = Recorder(), Recorder()
        sequences = reft_model.generate(**batch(), gate=gate, streamer=direct, **settings)
        loop = partial(gated_generate, streamer=routed)
        model.generate(**batch(), custom_generate=loop, interventions=reft_model, gate=gate, **settings)
        expected = [batch()["input_ids"].tolist(), *sequences[:, WIDTH:].T.tolist(), "end"]
        assert direct.heard == expected
        assert routed.heard == expected
        if gate in ("off", "kl:0"):
            stock = Recorder()
            model.generate(**batch(), streamer=stock, **settings)
            assert stock.heard == expected


@pytest.mark.parametrize("gate", GATES)
def test_a_dictionary_has_scores_and_logits_of_every_token(tiny_model: TinyModel, gate: str) -> None:
    model = tiny_model()
    reft_model = randomised(model)
    ends = ends_of(reft_model.generate(**batch(), gate=gate, **ENDLESS), (0, 2))
    settings: dict[str, Any] = {**ENDLESS, "eos_token_id": ends, "do_sample": True, "top_k": 5}
    asked = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    found = seeded(reft_model.generate, **batch(), gate=gate, **settings, **asked)
    assert torch.equal(found.sequences, seeded(reft_model.generate, **batch(), gate=gate, **settings))
    steps = found.sequences.shape[1] - WIDTH
    for per_step in (found.scores, found.logits):
        assert [(len(step), step.shape[1], step.dtype) for step in per_step] == [(3, 64, torch.float32)] * steps
    for row, tokens in enumerate(found.sequences[:, WIDTH:].tolist()):
        for step, token in enumerate(tokens):
            if token != PAD:
                assert found.scores[step][row].isfinite().sum() == 5
                assert found.scores[step][row, token] == found.logits[step][row, token]
    if gate in ("off", "kl:0"):
        stock = seeded(model.generate, **batch(), **settings, **asked)
        drawn = found.sequences[:, WIDTH:] != PAD
        for name in ("scores", "logits"):
            ours, theirs = (torch.stack(output[name], dim=1)[drawn] for output in (found, stock))
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    unasked = watched(reft_model, gate)
    assert unasked.scores is None
    assert unasked.logits is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_scores_and_logits_are_float32_whatever_the_model_is_in(tiny_model: TinyModel, dtype: torch.dtype) -> None:
    """As stock ``generate`` has them: what is drawn must not depend on who draws it."""
    asked = {"output_scores": True, "output_logits": True}
    output = watched(randomised(tiny_model().to(dtype)), "kl:inf", **asked)
    assert {step.dtype for step in (*output.scores, *output.logits)} == {torch.float32}


# --- stop strings ------------------------------------------------------------------------------------------------


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A character a token, 64 of them. (Stop strings need one that knows all letters, not the embedded one.)"""
    vocabulary = {char: index for index, char in enumerate("_" + string.ascii_letters + string.digits + ".")}
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges=[]))
    model.decoder = tokenizers.decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="_")


def cut(sequences: torch.Tensor, stop: str, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Completions up to and with the stop string."""
    texts = tokenizer.batch_decode(sequences[:, WIDTH:])
    return [text[: text.find(stop) + len(stop)] if stop in text else text for text in texts]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("place", [1, 6])
def test_stop_strings_end_rows_while_a_gate_is_open_and_after(
    tiny_model: TinyModel, tokenizer: PreTrainedTokenizerFast, gate: str, place: int
) -> None:
    model = tiny_model()
    reft_model = randomised(model)
    settings = {**ENDLESS, "eos_token_id": UNDRAWN}
    endless = reft_model.generate(**batch(), gate=gate, **settings)
    stop = tokenizer.decode(endless[0, WIDTH + place : WIDTH + place + 2])
    found = reft_model.generate(**batch(), gate=gate, stop_strings=[stop, "??"], tokenizer=tokenizer, **settings)
    texts = [text.rstrip("_") for text in tokenizer.batch_decode(found[:, WIDTH:])]
    assert texts == cut(endless, stop, tokenizer)
    assert texts[0].endswith(stop)
    if gate in ("off", "kl:0"):
        stock = model.generate(**batch(), stop_strings=[stop], tokenizer=tokenizer, **settings)
        assert torch.equal(found, stock)


@pytest.mark.parametrize(("gate", "stock"), [("kl:0", "off"), ("kl:inf", "always")])
@pytest.mark.parametrize("place", ["call", "own", "given", "own beside given"])
def test_stop_strings_are_found_where_stock_generate_finds_them(
    tiny_model: TinyModel, tokenizer: PreTrainedTokenizerFast, gate: str, stock: str, place: str
) -> None:
    """In the call, in the model's own generation config, in a given one, or in its own where a given one has none."""
    model = tiny_model()
    reft_model = randomised(model)
    endless = reft_model.generate(**batch(), gate=stock, **ENDLESS)
    stop = [tokenizer.decode(endless[row, WIDTH + 2 : WIDTH + 4]) for row in range(3)]
    model.generation_config.update(max_new_tokens=BUDGET, eos_token_id=UNDRAWN)
    options: dict[str, Any] = {"tokenizer": tokenizer}
    if place == "call":
        options["stop_strings"] = stop
    if "given" in place:
        options["generation_config"] = GenerationConfig(stop_strings=stop if place == "given" else None)
    if "own" in place:
        model.generation_config.stop_strings = stop
    expected = reft_model.generate(**batch(), gate=stock, **options)
    assert expected.shape[1] <= WIDTH + 4
    assert torch.equal(reft_model.generate(**batch(), gate=gate, **options), expected)


def test_stop_strings_stand_beside_other_criteria(tiny_model: TinyModel, tokenizer: PreTrainedTokenizerFast) -> None:
    reft_model = randomised(tiny_model())
    settings: dict[str, Any] = {**ENDLESS, "eos_token_id": UNDRAWN, "gate": "kl:1"}
    endless = reft_model.generate(**batch(), **settings)
    stop = tokenizer.decode(endless[0, WIDTH + 1 : WIDTH + 3])
    criteria = [lambda ids, scores, **kwargs: (ids[:, 0] == PAD) & (ids.shape[1] == WIDTH + 6)]
    found = reft_model.generate(
        **batch(), **settings, stop_strings=stop, tokenizer=tokenizer, stopping_criteria=criteria
    )
    assert (found[:, WIDTH:] != PAD).sum(dim=1).tolist() == [3, 6, 6]


@pytest.mark.parametrize(("gate", "stock"), [("kl:0", "off"), ("kl:inf", "always")])
def test_none_in_the_call_puts_the_models_own_stop_strings_aside(tiny_model: TinyModel, gate: str, stock: str) -> None:
    model = tiny_model()
    reft_model = randomised(model)
    model.generation_config.stop_strings = list(string.ascii_letters)
    expected = reft_model.generate(**batch(), gate=stock, stop_strings=None, **ENDLESS)
    assert torch.equal(reft_model.generate(**batch(), gate=gate, stop_strings=None, **ENDLESS), expected)


# --- memory ------------------------------------------------------------------------------------------------------


@contextmanager
def rows_run(model: PreTrainedModel) -> Iterator[list[int]]:
    """Rows of every forward pass, which must be those of the cache after it."""
    rows: list[int] = []

    def record(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        rows.append(len(kwargs["input_ids"]))
        assert {len(layer.keys) for layer in output.past_key_values.layers} == {rows[-1]}

    handle = model.register_forward_hook(record, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()


@pytest.mark.parametrize("handoff", get_args(Handoff))
@pytest.mark.parametrize("positions", ["all", "generated", "prompt"])
@pytest.mark.parametrize("ends", [(), ((0, 1),), ((0, 1), (1, 2), (2, 3))], ids=["none", "one", "all"])
def test_a_pass_a_token_with_one_more_row_for_each_open_gate(
    tiny_model: TinyModel, handoff: Handoff, positions: str, ends: tuple[tuple[int, int], ...]
) -> None:
    model = tiny_model().double()
    reft_model = randomised(model, intervention="red", site="attn_v", positions=positions)
    whole = watched(reft_model, "kl:inf")
    gate = KLGate(math.inf if len(ends) == 3 else whole.kl.cumsum(dim=1)[:, 5].median().item() * 1.01)
    with rows_run(model) as rows:
        output = watched(reft_model, gate, handoff=handoff, eos_token_id=ends_of(whole.sequences, *ends) or None)
    steps = output.sequences.shape[1] - WIDTH
    are_open = (~output.kl.isnan()).sum(dim=0).tolist()
    assert are_open[0] == 3
    assert len(set(are_open)) > 1
    expected = [3 + number for number in are_open] + [3] * (steps - len(are_open))
    if positions == "generated":
        expected[0] = 3  # the prompt is read once for both
    assert rows == expected
    assert {len(layer.keys) for layer in output.past_key_values.layers} == {3}
    assert output.past_key_values.get_seq_length() == WIDTH + steps - 1


@pytest.mark.parametrize("gate", ["off", "always", "prompt"])
def test_gates_that_never_change_run_the_batch_alone(tiny_model: TinyModel, gate: str) -> None:
    model = tiny_model()
    with rows_run(model) as rows:
        randomised(model).generate(**batch(), gate=gate, **ENDLESS)
    assert rows == [3] * BUDGET


# --- errors ------------------------------------------------------------------------------------------------------


def fails_at_the_fourth(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    if input_ids.shape[1] == WIDTH + 3:
        raise RuntimeError("out of memory")
    return scores


@pytest.mark.parametrize("is_routed", [False, True], ids=["ours", "routed"])
@pytest.mark.parametrize("gate", GATES)
def test_an_error_in_the_middle_leaves_nothing_behind(tiny_model: TinyModel, gate: str, is_routed: bool) -> None:
    model = tiny_model()
    ids = batch()["input_ids"]
    before = model(ids).logits
    reft_model = randomised(model)
    expected = reft_model.generate(**batch(), gate=gate, **ENDLESS)
    loop = {"custom_generate": gated_generate, "interventions": reft_model}
    generate = partial(model.generate, **loop) if is_routed else reft_model.generate
    with pytest.raises(RuntimeError, match="out of memory"):
        generate(**batch(), gate=gate, logits_processor=[fails_at_the_fourth], **ENDLESS)
    assert torch.equal(model(ids).logits, before)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(reft_model.generate(**batch(), gate=gate, **ENDLESS), expected)


WITHOUT_MEANING = [
    ({"num_beams": 2}, "greedy decoding and sampling; got beam search"),
    ({"prompt_lookup_num_tokens": 2}, "greedy decoding and sampling; got assisted generation"),
    ({"assistant_model": object()}, "cannot be combined with assistant_model"),
    ({"custom_generate": gated_generate}, "cannot be combined with custom_generate"),
    ({"use_cache": False}, "needs the KV cache; leave use_cache=False out"),
    ({"output_attentions": True}, "cannot be combined with output_attentions"),
    ({"output_hidden_states": True}, "cannot be combined with output_hidden_states"),
    ({"stop_strings": "ab"}, "pass the tokenizer too"),
    ({"handoff": "x"}, "handoff is 'base' or 'keep'; got 'x'"),
]


@pytest.mark.parametrize("gate", ["tokens:4", "kl:0.5"])
@pytest.mark.parametrize(("options", "message"), WITHOUT_MEANING, ids=lambda value: str(value)[:24])
def test_what_a_gate_cannot_go_with_is_said_before_anything_runs(
    tiny_model: TinyModel, gate: str, options: dict[str, Any], message: str
) -> None:
    model = tiny_model()
    reft_model = randomised(model)
    with rows_run(model) as rows, pytest.raises(UserError, match=message) as caught:
        reft_model.generate(**{**batch(), **ENDLESS, "gate": gate, **options})
    assert rows == []
    assert "\n" not in str(caught.value)


def test_gate_prompt_needs_an_adapter_that_acts_on_prompts(tiny_model: TinyModel) -> None:
    model = tiny_model()
    reft_model = randomised(model, positions="generated")
    route = {"custom_generate": gated_generate, "interventions": reft_model}
    with pytest.raises(UserError, match="this one acts on generated tokens only"):
        reft_model.generate(**batch(), gate="prompt", **ENDLESS)
    with pytest.raises(UserError, match="this one acts on generated tokens only"):
        model.generate(**batch(), **route, gate="prompt", **ENDLESS)


def test_a_static_cache_with_windows_is_named_as_what_cannot_go(tiny_model: TinyModel) -> None:
    reft_model = randomised(tiny_model("Mistral", sliding_window=4))
    with pytest.raises(UserError, match="static ones without sliding windows; got StaticSlidingWindowLayer"):
        reft_model.generate(**batch(), gate="kl:0.5", cache_implementation="static", **ENDLESS)
