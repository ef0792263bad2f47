"""A sweep over gates against a decoding under each of them."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch

from reft_math.data.arithmetic.problems import arithmetic_problems
from reft_math.data.arithmetic.tokenizer import build_tokenizer
from reft_math.data.templates import get_template
from reft_math.decoding.completions import CompletionSettings, complete
from reft_math.decoding.gate_sweep import GateSweep
from reft_math.models import load_model
from reft_math.models.adapter import PrefixReftModel, get_prefix_reft_model
from reft_math.models.config import PrefixReftConfig

GATES = [
    "off",
    "tokens:3",
    *(f"kl:{nats},min=1" for nats in (0.05, 0.2, 0.5, 1, 2, 4, 8)),
    "kl:inf,min=1",
    "kl:2,max=9",
]
QUESTIONS = [problem.question for problem in arithmetic_problems("test", 12)]


@pytest.fixture(scope="module")
def model() -> PrefixReftModel:
    model = get_prefix_reft_model(load_model("arithmetic"), PrefixReftConfig(intervention="bias", site="ffn_up"))
    generator = torch.Generator().manual_seed(4)
    for bias in model.biases().values():
        bias.data.copy_(0.012 * torch.randn(bias.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def decoding() -> CompletionSettings:
    tokenizer = build_tokenizer()
    template = get_template("auto", tokenizer)
    return CompletionSettings(tokenizer, template, [int(tokenizer.eos_token_id)], max_new_tokens=40)


def test_records_are_those_of_a_decoding_under_each_gate(model: PrefixReftModel, decoding: CompletionSettings) -> None:
    drawn: Counter[str] = Counter()

    def counting(name: str, generate: Any, inputs: torch.Tensor, **settings: Any) -> Any:
        drawn[name] += len(inputs)
        return generate(inputs, **settings)

    generate, base = partial(counting, "gated", model.generate), partial(counting, "base", model.model.generate)
    sweep = GateSweep(generate, base, decoding, torch.device("cpu"), GATES)
    closings = set()
    for gate in GATES:
        alone = complete(
            QUESTIONS,
            None,
            generate=partial(model.generate, gate=gate),
            decoding=decoding,
            device=torch.device("cpu"),
        )
        swept = [row for part in (QUESTIONS[:5], QUESTIONS[5:]) for row in sweep.completer(gate)(part, None)]
        for one, other in zip(swept, alone, strict=True):
            assert {**one, "kl": None, "cumulative_kl": None} == {**other, "kl": None, "cumulative_kl": None}, gate
            if "kl" in other:
                assert one["kl"] == pytest.approx(other["kl"], rel=1e-3, abs=1e-5)
                assert one["cumulative_kl"] == pytest.approx(other["cumulative_kl"], rel=1e-3, abs=1e-5)
            closings.add(other.get("closing_position"))
    assert len(closings) > 4, "gates close here and there"
    assert drawn["gated"] == (1 + 3) * len(QUESTIONS), "the widest, and off, tokens:3 and kl:2,max=9 by themselves"
    assert 0 < drawn["base"] < 5 * len(QUESTIONS), "of seven gates"


def test_without_kl_gates_each_is_decoded_by_itself(model: PrefixReftModel, decoding: CompletionSettings) -> None:
    sweep = GateSweep(model.generate, model.model.generate, decoding, torch.device("cpu"), ["tokens:2", "always"])
    for gate in ("tokens:2", "always"):
        stock = partial(complete, generate=partial(model.generate, gate=gate), decoding=decoding)
        assert sweep.completer(gate)(QUESTIONS[:3], None) == stock(QUESTIONS[:3], None, device=torch.device("cpu"))


def test_a_threshold_of_0_has_no_dead_band_in_half_precision(decoding: CompletionSettings) -> None:
    model = get_prefix_reft_model(load_model("arithmetic").bfloat16(), PrefixReftConfig(site="ffn_up"))
    for bias in model.biases().values():
        bias.data.fill_(0.01)
    gates = ["kl:0", "kl:0.05", "kl:1"]
    sweep = GateSweep(model.generate, model.model.generate, decoding, torch.device("cpu"), gates)
    for gate in gates:
        stock = partial(complete, generate=partial(model.generate, gate=gate), decoding=decoding)
        swept, alone = (
            sweep.completer(gate)(QUESTIONS[:6], None),
            stock(QUESTIONS[:6], None, device=torch.device("cpu")),
        )
        for one, other in zip(swept, alone, strict=True):
            assert one["closing_position"] == other["closing_position"]
            assert one.get("dead_band") == other.get("dead_band")
