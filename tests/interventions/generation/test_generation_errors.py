"""What gated generation cannot go with, and what an error leaves behind."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from gated_batches import BUDGET, ENDLESS, GATES, PROMPTS, WIDTH, TinyModel, batch, randomised, rows_run

from interventions.generation import gated_generate
from interventions.logits import NotFiniteLogits
from reft_math.errors import UserError


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


FROM_NAN: list[tuple[str, dict[str, Any]]] = [
    *((gate, {}) for gate in GATES),
    ("off", {"do_sample": True}),
    ("prompt", {"num_beams": 2}),
    ("always", {"num_beams": 2, "do_sample": True}),
    ("always", {"prompt_lookup_num_tokens": 2}),
    ("tokens:1", {"do_sample": True}),
]


@pytest.mark.parametrize(("gate", "options"), FROM_NAN, ids=str)
def test_no_token_is_drawn_from_logits_that_are_nan(tiny_model: TinyModel, gate: str, options: dict[str, Any]) -> None:
    """From the third pass on; `torch.argmax` would draw the first NaN's, and beams a token that nobody asked for."""
    model, passes = tiny_model(), []

    def spoil(module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        passes.append(len(output))
        return output if len(passes) < 3 else output * torch.nan

    model.get_output_embeddings().register_forward_hook(spoil)
    reft_model = randomised(model)
    with pytest.raises(NotFiniteLogits, match="logits must be finite; those for row 0 are NaN or infinite"):
        reft_model.generate(**batch(PROMPTS[:1]), gate=gate, **options, **ENDLESS)
    assert len(passes) == 3
    if gate not in ("off", "always", "prompt"):
        passes.clear()
        loop: dict[str, Any] = {"custom_generate": gated_generate, "interventions": reft_model}
        with pytest.raises(NotFiniteLogits):
            model.generate(**batch(PROMPTS[:1]), **loop, gate=gate, **options, **ENDLESS)
        assert len(passes) == 3


def test_a_callers_processor_may_exclude_every_token(tiny_model: TinyModel) -> None:
    """Of a row that has ended, say: stock ``generate`` takes that, and so does every gate."""
    reft_model = randomised(tiny_model())
    for gate in ("always", "tokens:1", "kl:inf"):
        sequences = reft_model.generate(
            **batch(), gate=gate, logits_processor=[lambda ids, scores: torch.full_like(scores, -torch.inf)], **ENDLESS
        )
        assert sequences.shape == (3, WIDTH + BUDGET)


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
    with pytest.raises(UserError, match="this one acts on generated positions"):
        reft_model.generate(**batch(), gate="prompt", **ENDLESS)
    with pytest.raises(UserError, match="this one acts on generated positions"):
        model.generate(**batch(), **route, gate="prompt", **ENDLESS)


def test_a_static_cache_with_windows_is_named_as_what_cannot_go(tiny_model: TinyModel) -> None:
    reft_model = randomised(tiny_model("Mistral", sliding_window=4))
    with pytest.raises(UserError, match="static ones without sliding windows; got StaticSlidingWindowLayer"):
        reft_model.generate(**batch(), gate="kl:0.5", cache_implementation="static", **ENDLESS)
