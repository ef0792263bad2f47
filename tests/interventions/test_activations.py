"""What is read, pushed and measured in a model, against the model's own outputs and float64 formulas."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from interventions import PrefixReftConfig, PrefixReftModel, get_prefix_reft_model
from interventions.activations import pad_right, project_changes, pushing, read_activations
from interventions.sites import sites_of

FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3", "Phi3", "GPTNeoX")
LONG, SHORT = [5, 9, 33, 41, 17, 8, 60], [7, 21, 3, 50]
TOKENS = torch.tensor([LONG])


def randomised(model: PreTrainedModel, **config: object) -> PrefixReftModel:
    reft_model = get_prefix_reft_model(model, PrefixReftConfig(**config))  # type: ignore[arg-type]
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in reft_model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return reft_model


def all_columns(input_ids: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(input_ids, dtype=torch.bool)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_read_as_the_model_gives_them(tiny_model: Callable[..., PreTrainedModel], family: str) -> None:
    model = tiny_model(family)
    read = torch.from_numpy(read_activations(model, [(LONG, [0, 6]), (SHORT, [3, 1])], "block"))
    assert read.shape == (4, 3, 32)
    for row, (tokens, column) in enumerate([(LONG, 0), (LONG, 6), (SHORT, 3), (SHORT, 1)]):
        # The last of the model's own hidden states is normed already.
        states = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[1:3]
        for layer, state in enumerate(states):
            torch.testing.assert_close(read[row, layer], state[0, column], atol=1e-5, rtol=1e-5)


def test_other_sites_are_read_in_their_own_width(tiny_model: Callable[..., PreTrainedModel]) -> None:
    assert read_activations(tiny_model(), [(LONG, [2])], "ffn_up").shape == (1, 3, 48)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_push_is_added_to_the_stream_and_gone_afterwards(
    tiny_model: Callable[..., PreTrainedModel], family: str
) -> None:
    model = tiny_model(family)
    plain, stream = model(TOKENS).logits, torch.from_numpy(read_activations(model, [(LONG, [4])], "block"))
    vector = torch.linspace(-1, 1, 32)
    with pushing(model, {1: vector[None, None]}):
        pushed = torch.from_numpy(read_activations(model, [(LONG, [4])], "block"))
        assert not torch.equal(model(TOKENS).logits, plain)
    torch.testing.assert_close(pushed[:, 1], stream[:, 1] + vector)
    torch.testing.assert_close(pushed[:, 0], stream[:, 0])
    with pushing(model, {layer: torch.zeros(1, 1, 32) for layer in range(3)}):
        assert torch.equal(model(TOKENS).logits, plain), "a push by nothing changes nothing, to the bit"
    assert torch.equal(model(TOKENS).logits, plain)


def test_every_row_has_a_push_of_its_own(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model()
    vectors = torch.stack([torch.zeros(32), torch.ones(32)])[:, None]
    with pushing(model, {0: vectors}):
        first, second = model(TOKENS.repeat(2, 1)).logits
    torch.testing.assert_close(first, model(TOKENS).logits[0])
    assert not torch.allclose(second, first)


@pytest.mark.parametrize("family", FAMILIES)
def test_untouched_red_changes_nothing(tiny_model: Callable[..., PreTrainedModel], family: str) -> None:
    model = tiny_model(family)
    for site in sites_of(model):
        reft_model = get_prefix_reft_model(model, PrefixReftConfig(site=site))
        projections, norms = project_changes(reft_model, TOKENS, all_columns(TOKENS), torch.ones(3, 32))
        reft_model.unload()
        assert projections.shape == norms.shape == (1, 7, 3)
        assert not projections.any()
        assert not norms.any()


def test_reds_change_goes_through_the_down_projection(tiny_model: Callable[..., PreTrainedModel]) -> None:
    """``W_down(act(W_gate x) ⊙ (s ⊙ u + b − u))`` with ``u = W_up x``, x as it is in the intervened run."""
    model = tiny_model()
    reft_model = randomised(model, site="ffn_up", layers="0,2")
    inputs: dict[int, torch.Tensor] = {}

    def remember(layer: int) -> Callable[..., None]:
        return lambda module, args: inputs.update({layer: args[0].double()})

    handles = [
        model.get_submodule(f"model.layers.{layer}.mlp").register_forward_pre_hook(remember(layer)) for layer in (0, 2)
    ]
    directions = torch.nn.functional.normalize(torch.randn(3, 32, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        reft_model(TOKENS)
        for handle in handles:
            handle.remove()
        projections, norms = project_changes(reft_model, TOKENS, all_columns(TOKENS), directions)
        for layer, x in inputs.items():
            mlp = model.get_submodule(f"model.layers.{layer}.mlp").double()
            up = nn.functional.linear(x, mlp.up_proj.weight)
            scale, bias = reft_model.scales()[layer].double(), reft_model.biases()[layer].double()
            change = mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * (scale * up + bias - up))
            torch.testing.assert_close(
                projections[..., layer].double(), change @ directions[layer].double(), atol=1e-5, rtol=1e-4
            )
            torch.testing.assert_close(norms[..., layer].double(), change.norm(dim=-1), atol=1e-5, rtol=1e-4)
    assert not projections[..., 1].any(), "a layer without an intervention has no change of its own"


def test_lorefts_change_at_the_block_is_its_edit(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model()
    reft_model = randomised(model, intervention="loreft", site="block", layers="1", rank=2)
    stream = torch.from_numpy(read_activations(model, [(LONG, range(7))], "block"))[:, 1]
    direction = torch.linspace(-1, 1, 32)
    projections, _ = project_changes(reft_model, TOKENS, all_columns(TOKENS), direction.expand(3, 32))
    with torch.no_grad():
        intervention = next(iter(reft_model.interventions.values()))
        expected = (intervention(stream) - stream) @ direction
    torch.testing.assert_close(projections[0, :, 1], expected, atol=1e-5, rtol=1e-4)


def test_changes_are_where_the_mask_is_and_padding_matters_to_none(tiny_model: Callable[..., PreTrainedModel]) -> None:
    model = tiny_model()
    plain = model(TOKENS).logits
    reft_model = randomised(model)
    input_ids = pad_right([LONG, SHORT], model.device)
    mask = all_columns(input_ids)
    mask[:, 2] = False
    projections, _ = project_changes(reft_model, input_ids, mask, torch.ones(3, 32))
    assert not projections[:, 2].any()
    assert projections[:, [0, 1, 3]].all()
    alone, _ = project_changes(reft_model, torch.tensor([SHORT]), mask[1:, :4], torch.ones(3, 32))
    torch.testing.assert_close(projections[1:, :4], alone, atol=1e-4, rtol=1e-4)
    assert torch.equal(model(TOKENS).logits, plain), "nothing is left hooked in"
