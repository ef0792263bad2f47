"""A gated request's course, answered by transformers' own forward passes, draws what decoding step by step draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gated_batches import BUDGET, GATES, PROMPTS, TinyModel, randomised, watched

from interventions import PrefixReftModel
from interventions.gates import kl_divergence, parse_gate
from reft_math.engines.vllm import course as courses
from reft_math.engines.vllm.course import Ask, Draft, GateReport, Verify, Written, course
from reft_math.errors import UserError


def answered(reft_model: PrefixReftModel, ask: Ask, end: int | None) -> Any:
    """What an engine answers that runs the base, and drafts with the adapter acting on every token."""
    token_ids = torch.tensor([ask.token_ids])
    if isinstance(ask, Verify):
        last = slice(-ask.num_drafted, None)
        with torch.no_grad():
            base = reft_model.model(token_ids).logits[0, last]
            mod = reft_model(token_ids, intervention_mask=torch.ones_like(token_ids, dtype=torch.bool)).logits[0, last]
        return kl_divergence(mod, base).tolist()
    gate = "always" if isinstance(ask, Draft) else "off"
    drawn = reft_model.generate(token_ids, gate=gate, max_new_tokens=ask.max_tokens, eos_token_id=end, pad_token_id=0)
    tokens = drawn[0, len(ask.token_ids) :].tolist()
    return Written(tokens, "stop" if end is not None and tokens[-1] == end else "length")


def run(
    reft_model: PrefixReftModel, prompt: list[int], gate: str, end: int | None = None
) -> tuple[Written, GateReport, list[Ask]]:
    way = course(prompt, BUDGET, parse_gate(gate).on(torch.float32))
    asks: list[Ask] = [next(way)]
    while True:
        try:
            asks.append(way.send(answered(reft_model, asks[-1], end)))
        except StopIteration as done:
            return *done.value, asks


@pytest.mark.parametrize("draft_tokens", [1, 3, 16])
@pytest.mark.parametrize("gate", [gate for gate in GATES if gate not in ("off", "prompt")])
def test_draws_what_decoding_step_by_step_draws(
    tiny_model: TinyModel, gate: str, draft_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courses, "DRAFT_TOKENS", draft_tokens)
    reft_model = randomised(tiny_model("Llama"))
    for prompt in PROMPTS:
        stepwise = watched(reft_model, gate, [prompt])
        written, report, _ = run(reft_model, prompt, gate)
        assert list(written.token_ids) == stepwise.sequences[0, len(prompt) :].tolist()
        assert written.finish_reason == "length"
        if gate == "always":
            assert report == GateReport()
            continue
        seen = stepwise.kl[0]
        assert report.closing_position == stepwise.closing_positions[0]
        assert report.kl == pytest.approx(seen[~seen.isnan()].tolist(), abs=1e-5)
        assert report.cumulative_kl == pytest.approx(stepwise.cumulative_kl[0].item(), abs=1e-5)


@pytest.mark.parametrize("gate", ["always", "tokens:6", "kl:inf", "kl:0.5"])
def test_ends_where_decoding_step_by_step_ends(tiny_model: TinyModel, gate: str) -> None:
    reft_model = randomised(tiny_model("Llama"))
    prompt = PROMPTS[0]
    free = watched(reft_model, gate, [prompt]).sequences[0, len(prompt) :].tolist()
    for end in dict.fromkeys(free):
        written, report, _ = run(reft_model, prompt, gate, end)
        ended = free.index(end)
        assert list(written.token_ids) == free[: ended + 1]
        assert written.ended == (ended < BUDGET)
        if gate == "tokens:6":
            assert report.closing_position == (-1 if ended < 6 else 6)


def test_asks_for_no_more_than_a_gate_allows_or_a_draft_holds(tiny_model: TinyModel) -> None:
    reft_model = randomised(tiny_model("Llama"))
    _, _, asks = run(reft_model, PROMPTS[0], "tokens:4")
    assert [type(ask).__name__ for ask in asks] == ["Draft", "Verify", "Rest"]
    assert [ask.max_tokens for ask in asks if not isinstance(ask, Verify)] == [4, BUDGET - 4]
    assert len(asks[1].token_ids) == len(PROMPTS[0]) + 3  # the last token's own divergence is known before it is read


def test_later_drafts_are_as_long_as_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courses, "DRAFT_TOKENS", 4)
    way = course([1], 100, parse_gate("kl:inf").on(torch.float32))
    ask, lengths = next(way), []
    while sum(lengths) < 60:
        assert isinstance(ask, Draft)
        lengths.append(ask.max_tokens)
        way.send(Written([7] * ask.max_tokens, "length"))
        ask = way.send([0.0] * lengths[-1])
    assert lengths == [4, 4, 8, 16, 32]


def test_a_divergence_that_is_not_a_number_is_an_error() -> None:
    way = course([1], 8, parse_gate("kl:inf").on(torch.float32))
    next(way)
    way.send(Written([7] * 8, "length"))
    with pytest.raises(UserError, match="those of token 1 are not"):
        way.send([0.0, float("nan"), *[0.0] * 6])


@pytest.mark.parametrize("closing", [None, 5, 6])
def test_a_stop_text_that_two_drafts_share_ends_the_text_and_its_report(
    closing: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Complete with the sixth token, two of which are the second draft's; the gate closes later, or there, or not."""
    monkeypatch.setattr(courses, "DRAFT_TOKENS", 4)
    gate = parse_gate("kl:inf" if closing is None else f"kl:{closing}.5").on(torch.float32)
    way = course([1], 20, gate, lambda tokens: (6, "stop") if len(tokens) >= 6 else None)
    next(way)
    way.send(Written([7] * 4, "length"))
    way.send([1.0] * 4)
    way.send(Written([7] * 4, "length"))
    if closing == 5:  # the base draws the sixth token
        assert way.send([1.0] * 4) == courses.Rest([1, *[7] * 5], 15)
        return
    with pytest.raises(StopIteration) as done:
        way.send([1.0] * 4)
    written, report = done.value.value
    assert written == Written([7] * 6, "stop", "stop")
    assert report == GateReport([1.0] * 6, 6.0, -1)


def test_a_long_drafts_states_are_bounded() -> None:
    ask = next(course([1], 2000, parse_gate("tokens:1000").on(torch.float32)))
    assert isinstance(ask, Draft)
    assert ask.max_tokens == courses.LONGEST_DRAFT


def test_half_precision_has_the_gates_dead_band() -> None:
    way = course([1], 2, parse_gate("kl:0.1").on(torch.bfloat16))
    next(way)
    way.send(Written([7, 8], "length"))
    with pytest.raises(StopIteration) as done:
        way.send([0.06, 0.06])
    written, report = done.value.value
    assert written.token_ids == [7, 8]
    assert report.cumulative_kl == pytest.approx(0.1)
