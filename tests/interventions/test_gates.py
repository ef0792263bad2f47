"""Gates by themselves: what they let through, their words, and the divergence against its formula in float64."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import scipy.special
import torch

from interventions.gates import AlwaysOn, Direction, Gate, KLGate, PromptOnly, TokenGate, kl_divergence, parse_gate
from reft_math.errors import UserError

# --- the divergence ----------------------------------------------------------------------------------------------


def by_formula(p_logits: torch.Tensor, q_logits: torch.Tensor) -> np.ndarray:
    p, q = (scipy.special.softmax(logits.double().numpy(), axis=-1) for logits in (p_logits, q_logits))
    return np.asarray(scipy.special.rel_entr(p, q).sum(axis=-1))


def random_logits(*shape: int, seed: int, scale: float = 3, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocabulary", [2, 50, 20_000])
def test_divergence_is_the_formula_over_the_whole_vocabulary(dtype: torch.dtype, vocabulary: int) -> None:
    """The logits as they come are exact; what is computed from them is at least float32."""
    mod = random_logits(5, vocabulary, seed=0, dtype=dtype)
    base = random_logits(5, vocabulary, seed=1, dtype=dtype)
    divergence = kl_divergence(mod, base)
    assert divergence.shape == (5,)
    assert divergence.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    np.testing.assert_allclose(divergence.numpy(), by_formula(mod, base), rtol=tolerance)


def test_direction_says_which_model_the_expectation_is_under() -> None:
    mod, base = random_logits(4, 30, seed=0), random_logits(4, 30, seed=1)
    forward, backward = (kl_divergence(mod, base, direction) for direction in ("mod||base", "base||mod"))
    np.testing.assert_allclose(forward.numpy(), by_formula(mod, base), rtol=2e-5)
    np.testing.assert_allclose(backward.numpy(), by_formula(base, mod), rtol=2e-5)
    assert ((forward - backward).abs() > 0.1).all()
    assert torch.equal(backward, kl_divergence(base, mod))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("direction", ["mod||base", "base||mod"])
def test_equal_logits_have_divergence_exactly_zero(dtype: torch.dtype, direction: Direction) -> None:
    logits = random_logits(6, 1000, seed=2, scale=20, dtype=dtype)
    logits[0, :500] = -torch.inf
    assert kl_divergence(logits, logits.clone(), direction).tolist() == [0] * 6


def test_rounding_gives_no_negative_divergence() -> None:
    """What a clamp is for: among these the sum itself comes out below 0."""
    mod = random_logits(2000, 40, seed=3)
    base = mod + random_logits(2000, 40, seed=4, scale=1e-6)
    log_p, log_q = mod.log_softmax(-1), base.log_softmax(-1)
    assert ((log_p.exp() * (log_p - log_q)).sum(-1) < 0).any()
    divergence = kl_divergence(mod, base)
    assert (divergence >= 0).all()
    assert divergence.max() < 1e-5


def test_excluded_tokens_count_for_nothing_where_both_exclude_them_and_infinitely_where_q_alone_does() -> None:
    excluded = -math.inf
    mod = torch.tensor([[0.0, 1.0, excluded], [0.0, 1.0, excluded], [0.0, 1.0, 2.0], [3.0, excluded, excluded]])
    base = torch.tensor([[1.0, 0.0, excluded], [1.0, 0.0, 2.0], [1.0, 0.0, excluded], [excluded, 3.0, 3.0]])
    divergence = kl_divergence(mod, base)
    sure = math.e / (1 + math.e)
    expected = [2 * sure - 1, sum(by_formula(mod[1:2], base[1:2])), math.inf, math.inf]
    np.testing.assert_allclose(divergence.numpy(), expected, rtol=1e-6)


def test_a_probability_that_underflows_gives_a_finite_divergence() -> None:
    mod, base = torch.tensor([[0.0, -500.0]]), torch.tensor([[-500.0, 0.0]])
    assert kl_divergence(mod, base).tolist() == [500.0]
    assert kl_divergence(torch.tensor([[0.0, -500.0]]), torch.tensor([[0.0, 0.0]])).item() == pytest.approx(math.log(2))


def test_logits_are_raw_a_shift_of_all_changes_nothing() -> None:
    mod, base = random_logits(3, 20, seed=5), random_logits(3, 20, seed=6)
    torch.testing.assert_close(kl_divergence(mod + 7, base - 30), kl_divergence(mod, base), rtol=1e-4, atol=0)


# --- when they are open ------------------------------------------------------------------------------------------

DIVERGENCES = [0.0, 0.5, 1.0, 1.0000001, math.inf]


@pytest.mark.parametrize(
    ("gate", "allowed", "open_by_divergence"),
    [
        (AlwaysOn(), [0, 1, 2, 3], {0: DIVERGENCES, 3: DIVERGENCES}),
        (PromptOnly(), [0, 1, 2, 3], {0: DIVERGENCES}),
        (TokenGate(0), [], {}),
        (TokenGate(2), [0, 1], {0: DIVERGENCES, 1: DIVERGENCES}),
        (KLGate(1), [0, 1, 2, 3], {0: [0.0, 0.5, 1.0], 3: [0.0, 0.5, 1.0]}),
        (KLGate(0), [0, 1, 2, 3], {0: [0.0], 3: [0.0]}),
        (KLGate(math.inf), [0, 1, 2, 3], {0: DIVERGENCES}),
        (KLGate(0.5, min_tokens=2), [0, 1, 2, 3], {0: DIVERGENCES, 1: DIVERGENCES, 2: [0.0, 0.5]}),
        (KLGate(1, max_tokens=3), [0, 1, 2], {2: [0.0, 0.5, 1.0]}),
        (KLGate(0, max_tokens=0), [], {}),
        (KLGate(1, dead_band=0.5), [0, 1, 2, 3], {0: [0.0, 0.5, 1.0]}),
        (KLGate(0, "base||mod", min_tokens=2, max_tokens=2), [0, 1], {0: DIVERGENCES, 1: DIVERGENCES}),
    ],
    ids=str,
)
def test_gates_are_open_up_to_their_count_and_up_to_their_threshold_inclusive(
    gate: Gate, allowed: list[int], open_by_divergence: dict[int, list[float]]
) -> None:
    assert [step for step in range(4) if gate.allows(step)] == allowed
    cumulative = torch.tensor(DIVERGENCES, dtype=torch.float64)
    for step, divergences in open_by_divergence.items():
        stays_open = gate.stays_open(step, cumulative)
        assert stays_open.dtype == torch.bool
        assert cumulative[stays_open].tolist() == divergences, step


def test_a_dead_band_is_off_every_divergence_and_by_default_the_dtypes() -> None:
    kl = torch.tensor([0.0, 0.5, 0.75, 2.0, math.inf])
    assert KLGate(1, dead_band=0.5).counted(kl).tolist() == [0.0, 0.0, 0.25, 1.5, math.inf]
    assert KLGate(1, dead_band=0.5).counted(torch.tensor([math.nan])).isnan().all()
    for dtype in (torch.float32, torch.float64):
        assert KLGate(1).on(dtype).counted(kl) is kl
    assert KLGate(1).on(torch.bfloat16).counted(kl).tolist() == pytest.approx([0.0, 0.49, 0.74, 1.99, math.inf])
    assert 0 < KLGate(1).on(torch.float16).dead_band < KLGate(1).on(torch.bfloat16).dead_band
    assert KLGate(1, dead_band=0.25).on(torch.bfloat16) == KLGate(1, dead_band=0.25)
    assert KLGate(0).on(torch.bfloat16).dead_band == 0, "τ = 0 asks for the base, token for token"
    assert TokenGate(3).on(torch.bfloat16) == TokenGate(3)
    assert TokenGate(3).counted(kl) is kl


# --- their words -------------------------------------------------------------------------------------------------

WORDS = {
    "off": TokenGate(0),
    "always": AlwaysOn(),
    "prompt": PromptOnly(),
    "tokens:1": TokenGate(1),
    "tokens:512": TokenGate(512),
    "kl:0": KLGate(0),
    "kl:2": KLGate(2),
    "kl:0.125": KLGate(0.125),
    "kl:1e-06": KLGate(1e-6),
    "kl:inf": KLGate(math.inf),
    "kl:2,min=1": KLGate(2, min_tokens=1),
    "kl:2,max=0": KLGate(2, max_tokens=0),
    "kl:0.1,base||mod": KLGate(0.1, "base||mod"),
    "kl:2,min=1,max=40,base||mod": KLGate(2, "base||mod", min_tokens=1, max_tokens=40),
    "kl:2,band=0": KLGate(2, dead_band=0),
    "kl:2,max=40,band=0.001,base||mod": KLGate(2, "base||mod", max_tokens=40, dead_band=1e-3),
}


@pytest.mark.parametrize("text", WORDS)
def test_a_gate_is_read_and_written_in_the_same_words(text: str) -> None:
    assert parse_gate(text) == WORDS[text]
    assert str(WORDS[text]) == text


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("tokens:0", "off"),
        ("kl:2.0", "kl:2"),
        ("kl:2,mod||base", "kl:2"),
        ("kl:1,base||mod,max=3,min=2", "kl:1,min=2,max=3,base||mod"),
    ],
)
def test_other_ways_to_write_a_gate_come_back_in_its_own_words(text: str, same: str) -> None:
    assert str(parse_gate(text)) == same


def test_a_threshold_comes_back_to_the_last_bit() -> None:
    for threshold in (1 / 3, 0.1 + 0.2, 1e-300, 2.0**60, math.pi):
        assert parse_gate(str(KLGate(threshold))) == KLGate(threshold)


WRONG_KINDS = ("", "on", "Off", " off", "off:", "off:1", "always:3", "prompt:1", "tokens", "kl", "KL:2", "kl=2")
WRONG_COUNTS = ("tokens:", "tokens:-1", "tokens:+1", "tokens:1.5", "tokens: 1", "tokens:1:2", "tokens:²", "tokens:1,2")
WRONG_OPTIONS = (
    "kl:1,min=2,min=3",
    "kl: 1",
    "kl:1_0",
    "kl:",
    "kl:two",
    "kl:,min=1",
    "kl:2,",
    "kl:2,1",
    "kl:2,min",
    "kl:2,min=",
    "kl:2,min=-1",
    "kl:2,max=1.5",
    "kl:2,mid=1",
    "kl:2,min=1=2",
    "kl:2,mod",
    "kl:2;min=1",
    "kl:2,band=",
    "kl:2,band= 1",
    "kl:2,band=1,band=1",
)


@pytest.mark.parametrize("text", WRONG_KINDS + WRONG_COUNTS + WRONG_OPTIONS)
def test_anything_else_is_an_error_of_one_line_that_gives_the_rule_and_what_came(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_gate(text)
    assert str(caught.value) == (
        "a gate is 'off', 'always', 'prompt', 'tokens:N' or 'kl:NATS', the last as in 'kl:2' or"
        f" 'kl:2,min=1,max=40,base||mod'; got {text!r}"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kl:-0.5", "threshold is a number of nats, 0 or more; got -0.5"),
        ("kl:nan", "threshold is a number of nats, 0 or more; got nan"),
        ("kl:1,min=3,max=2", "0 <= min <= max tokens; got min=3, max=2"),
        ("kl:1,band=-1", "dead band is a number of nats a token, 0 or more; got -1.0"),
        ("kl:1,band=inf", "dead band is a number of nats a token, 0 or more; got inf"),
    ],
)
def test_numbers_that_make_no_gate_are_said(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_gate(text)


def test_gates_made_in_code_are_checked_too() -> None:
    with pytest.raises(UserError, match="open for 0 tokens or more; got -1"):
        TokenGate(-1)
    with pytest.raises(UserError, match="0 <= min <= max tokens; got min=-1, max=None"):
        KLGate(1, min_tokens=-1)
    with pytest.raises(UserError, match=re.escape("direction is mod||base or base||mod; got 'mod|base'")):
        KLGate(1, "mod|base")  # type: ignore[arg-type]


@pytest.mark.parametrize("direction", ["mod||base", "base||mod"])
def test_logits_that_are_no_numbers_close_the_gate(direction: Direction) -> None:
    """An intervention that overflows must not go on drawing."""
    broken, fine = torch.full((1, 5), math.nan), torch.zeros(1, 5)
    divergence = kl_divergence(broken, fine, direction)
    assert divergence.isnan().all()
    assert not KLGate(math.inf).stays_open(0, divergence).any()


@pytest.mark.parametrize("gate", [3, None, ["kl:1"]])
def test_what_is_no_text_is_no_gate(gate: object) -> None:
    with pytest.raises(UserError, match="a gate is a Gate or its text; got"):
        parse_gate(gate)  # type: ignore[arg-type]
