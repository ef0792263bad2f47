"""Gated generation against stock ``generate`` and stock pyvene, and what a gate does."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any, get_args

import pyreft
import pytest
import torch
from gated_batches import (
    BUDGET,
    ENDLESS,
    GATES,
    PAD,
    PAIRED,
    PROMPTS,
    WIDTH,
    TinyModel,
    batch,
    ends_of,
    randomised,
    rows_run,
    seeded,
    watched,
)

from interventions.gates import Direction, KLGate
from interventions.generation import Handoff, gated_generate

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
@pytest.mark.parametrize("positions", ["all", "solution", "generated", "prompt"])
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


@pytest.mark.parametrize("gate", GATES)
def test_a_base_that_says_to_use_no_cache_generates_the_same(tiny_model: TinyModel, gate: str) -> None:
    expected = randomised(tiny_model()).generate(**batch(), gate=gate, **ENDLESS)
    model = tiny_model(use_cache=False)
    assert model.generation_config.use_cache is False
    reft_model = randomised(model)
    assert torch.equal(reft_model.generate(**batch(), gate=gate, **ENDLESS), expected)
    loop = {"custom_generate": gated_generate, "interventions": reft_model, "gate": gate}
    assert torch.equal(model.generate(**batch(), **loop, **ENDLESS), expected)


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


# --- memory ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handoff", get_args(Handoff))
@pytest.mark.parametrize("positions", ["all", "solution", "generated", "prompt"])
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
