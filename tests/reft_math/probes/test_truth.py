"""Hidden states at the ends of texts, and where interventions have acted there, against models and decoders."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from interventions import PrefixReftConfig, PrefixReftModel, get_prefix_reft_model
from interventions.activations import read_states
from interventions.gates import parse_gate
from interventions.pairs import Handoff
from interventions.positions import Positions
from interventions.sites import site_module
from reft_math.probes.statements import StatementText
from reft_math.probes.truth import where_acting

FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3", "Phi3", "GPTNeoX")
TEXTS = [StatementText([5, 9, 33, 41], [17, 8, 60]), StatementText([7, 21], [3])]
ROWS = [text.token_ids for text in TEXTS]
PROMPTS = [[5, 9, 33, 41], [7, 21, 3], [50, 12, 44, 8, 19]]


def moved(model: PreTrainedModel, positions: Positions = "all") -> PrefixReftModel:
    reft_model = get_prefix_reft_model(model, PrefixReftConfig(positions=positions)).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in reft_model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return reft_model


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_the_models_at_the_last_token(tiny_model: Callable[..., PreTrainedModel], family: str) -> None:
    """Heads are told apart by what they are for: through their columns of the output projection they add up to the
    attention's output."""
    model = tiny_model(family)
    stream, heads = map(torch.from_numpy, read_states(model, ROWS))
    assert heads.shape == (2, 3, 4, 8 if family in ("Qwen2", "GPTNeoX") else 12)
    for row, text in enumerate(TEXTS):
        outputs: list[torch.Tensor] = []
        handles = [
            site_module(model, "attn_o", layer).register_forward_hook(lambda *call, into=outputs: into.append(call[2]))
            for layer in range(3)
        ]
        tokens = torch.tensor([[*text.prompt, *text.answer]])
        states = model(tokens, output_hidden_states=True).hidden_states[1:3]  # the last is normed already
        for handle in handles:
            handle.remove()
        for layer, state in enumerate(states):
            torch.testing.assert_close(stream[row, layer], state[0, -1], atol=1e-5, rtol=1e-5)
        for layer, output in enumerate(outputs):
            weight = site_module(model, "attn_o", layer).weight.unflatten(1, (4, -1))
            added = torch.einsum("hd,ohd->o", heads[row, layer], weight)
            torch.testing.assert_close(added, output[0, -1], atol=1e-5, rtol=1e-5)


def test_states_under_interventions_are_those_behind_them(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model()
    reft_model = get_prefix_reft_model(model, PrefixReftConfig(site="block", layers="1")).eval()
    next(iter(reft_model.biases().values())).data += 2.0
    acts = torch.ones(2, 7, dtype=torch.bool)
    plain, changed = (read_states(model, ROWS, reft_model, mask)[0] for mask in (~acts, acts))
    assert (read_states(model, ROWS)[0] == plain).all()
    assert (changed[:, 0] == plain[:, 0]).all()
    assert changed[:, 1] == pytest.approx(plain[:, 1] + 2.0, abs=1e-5), "the hook reads what the intervention wrote"


@pytest.mark.parametrize("positions", ["all", "solution", "generated"])
@pytest.mark.parametrize("handoff", ["base", "keep"])
@pytest.mark.parametrize(
    "gate",
    ["tokens:1", "tokens:3", "kl:0", "kl:0.3", "kl:0.5,base||mod", "kl:0.2,min=4,band=0.05", "kl:9,max=4"],
)
def test_along_its_own_text_a_decoder_is_met_again(
    tiny_model: Callable[..., PreTrainedModel], gate: str, handoff: Handoff, positions: Positions
) -> None:
    """What is said to have acted predicts every next token of gated generation, and closes when generation did."""
    model = tiny_model()
    reft_model = moved(model, positions)
    is_ever_closed = False
    for prompt in PROMPTS:
        settings = {"max_new_tokens": 8, "min_new_tokens": 8, "return_dict_in_generate": True}
        output = reft_model.generate(torch.tensor([prompt]), gate=gate, handoff=handoff, **settings)
        closing = int(output.closing_positions[0])
        drawn = output.sequences[0, len(prompt) :].tolist()
        texts = [StatementText(prompt, drawn[:length]) for length in range(1, 8)]
        acts, is_open = where_acting(reft_model, parse_gate(gate), handoff, texts)
        assert is_open == [closing < 0 or len(text.answer) < closing for text in texts]
        is_ever_closed |= not all(is_open)
        for row, text in zip(acts, texts, strict=True):
            assert next_token(reft_model, row, text) == drawn[len(text.answer)]
    assert is_ever_closed


def test_always_on_acts_wherever_the_adapter_does_and_off_nowhere(tiny_model: Callable[..., PreTrainedModel]) -> None:
    reft_model = moved(tiny_model(), "generated")
    acts, is_open = where_acting(reft_model, parse_gate("always"), "base", TEXTS)
    assert is_open == [True, True]
    assert acts[0].tolist() == [False] * 4 + [True] * 3
    assert acts[1, :3].tolist() == [False] * 2 + [True]
    acts, is_open = where_acting(reft_model, parse_gate("off"), "keep", TEXTS)
    assert is_open == [False, False]
    assert not acts.any()


@torch.no_grad()
def next_token(reft_model: PrefixReftModel, acts: torch.Tensor, text: StatementText) -> int:
    with reft_model.intervening(acts[None, : len(text)]):
        logits = reft_model.model(torch.tensor([[*text.prompt, *text.answer]])).logits[0, -1]
    logits[2] = -torch.inf  # generation was not to end
    return int(logits.argmax())
