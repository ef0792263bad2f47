"""Edits of a step's flat tokens: which tokens, which columns, and the same edit on every rank."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from interventions import BiasIntervention, LoreftIntervention, RedIntervention
from reft_math.engines.vllm.edits import Asked, KeptStates, Row, ShardedEdit, acting_tokens, apply, part_of
from reft_math.errors import UserError

WIDTH = 8


def asked(adapter: str | None = "red", positions: Any = "all", key: str | None = None, keep_from: int = 0) -> Asked:
    return Asked(adapter, positions, prompt_length=4, key=key, keep_from=keep_from)


@pytest.mark.parametrize(
    ("positions", "acting"),
    [("all", [2, 3, 4, 5, 6]), ("solution", [5, 6]), ("generated", [6]), ("prompt", [2, 3, 4, 5])],
)
def test_acting_tokens_count_from_the_prompts_end(positions: str, acting: list[int]) -> None:
    """A prompt of four tokens and one generated, read together; two of another request lie before them."""
    found = acting_tokens([Row(asked(positions=positions), start=2, count=5, position=0)])
    assert found["red"].tolist() == acting


def test_acting_tokens_of_a_prompt_read_in_pieces_and_of_several_adapters() -> None:
    rows = [
        Row(asked("red", "solution"), start=0, count=2, position=2),
        Row(asked(None), start=2, count=3, position=0),
        Row(asked("bias"), start=5, count=1, position=9),
        Row(asked("red"), start=6, count=2, position=0),
        Row(asked("loreft", "generated"), start=8, count=2, position=0),
    ]
    assert {name: index.tolist() for name, index in acting_tokens(rows).items()} == {"red": [1, 6, 7], "bias": [5]}


def test_states_are_kept_from_a_position_on_over_several_steps() -> None:
    states = KeptStates()
    states.keep([Row(asked(key="a", keep_from=2), start=1, count=4, position=0)], torch.arange(5.0)[:, None])
    states.keep([Row(asked(key="a", keep_from=2), start=0, count=1, position=4)], torch.tensor([[9.0]]))
    states.keep([Row(asked(key=None), start=0, count=1, position=0)], torch.tensor([[5.0]]))
    assert states.take("a", range(2, 5)).tolist() == [[3.0], [4.0], [9.0]]
    with pytest.raises(KeyError):
        states.take("a", range(2, 5))


def test_states_read_anew_replace_the_old_ones() -> None:
    """vLLM reads a request anew after it has taken its cache away."""
    states = KeptStates()
    for value in (1.0, 2.0):
        states.keep([Row(asked(key="a"), start=0, count=1, position=0)], torch.tensor([[value]]))
    assert states.take("a", range(1)).tolist() == [[2.0]]


def drawn(kind: type) -> Any:
    torch.manual_seed(0)
    intervention = kind(embed_dim=WIDTH, low_rank_dimension=2)
    with torch.no_grad():
        for parameter in intervention.parameters():
            parameter.add_(torch.randn(parameter.shape))
    return intervention.eval()


@pytest.mark.parametrize("kind", [RedIntervention, BiasIntervention, LoreftIntervention])
def test_slices_of_ranks_make_the_whole_edit(kind: type) -> None:
    hidden = torch.randn(3, WIDTH)
    whole = drawn(kind)(hidden)
    parts = [
        ShardedEdit(drawn(kind), rank, 2, is_sliced=True, gather=lambda part: hidden)(hidden.chunk(2, dim=-1)[rank])
        for rank in range(2)
    ]
    torch.testing.assert_close(torch.cat(parts, dim=-1), whole, rtol=0, atol=0)


def test_up_projection_is_the_second_half() -> None:
    module: Any = SimpleNamespace(output_sizes=[WIDTH, WIDTH])
    assert part_of("ffn_up", module, 4, WIDTH, 1) == slice(8, 16)
    assert part_of("ffn_up", module, 4, WIDTH, 2) == slice(4, 8)


def test_attention_has_queries_then_keys_then_values() -> None:
    module: Any = SimpleNamespace(num_heads=2, num_kv_heads=1, head_size=4)
    assert part_of("attn_q", module, 8, 8, 1) == slice(0, 8)
    assert part_of("attn_k", module, 8, 4, 1) == slice(8, 12)
    assert part_of("attn_v", module, 8, 4, 1) == slice(12, 16)
    assert part_of("attn_o", module, 8, 8, 2) == slice(0, 8)


@pytest.mark.parametrize("site", ["ffn_up", "ffn_down", "attn_q", "attn_o", "block"])
@pytest.mark.parametrize("width", [4, 16])
def test_an_adapter_of_another_width_is_refused(site: str, width: int) -> None:
    module: Any = SimpleNamespace(output_sizes=[8, 8], num_heads=2, num_kv_heads=1, head_size=4)
    with pytest.raises(UserError, match=f"this one is for {site} of width {width}"):
        part_of(site, module, 8, width, 1)


def test_keys_that_ranks_share_are_refused() -> None:
    """Four ranks of two key heads: each head lies on two ranks."""
    module: Any = SimpleNamespace(num_heads=1, num_kv_heads=1, head_size=4)
    with pytest.raises(
        UserError, match="the model's is 16; ranks that share keys and values cannot edit them: use fewer"
    ):
        part_of("attn_k", module, 8, 8, 4)


@pytest.mark.parametrize("is_tuple", [True, False])
def test_an_edit_changes_its_rows_and_columns_only(is_tuple: bool) -> None:
    output = torch.randn(4, 2 * WIDTH)
    before = output.clone()
    edits = {"red": ShardedEdit(drawn(RedIntervention), 0, 1, True, torch.clone)}
    apply((output, None) if is_tuple else output, "ffn_up", slice(WIDTH, None), edits, {"red": torch.tensor([1, 3])})
    expected = before.clone()
    expected[[1, 3], WIDTH:] = drawn(RedIntervention)(before[[1, 3], WIDTH:])
    torch.testing.assert_close(output, expected, rtol=0, atol=0)


def test_a_block_is_the_sum_of_what_a_layer_returns() -> None:
    hidden, residual = torch.randn(3, WIDTH), torch.randn(3, WIDTH)
    before = hidden + residual
    edits = {"bias": ShardedEdit(drawn(BiasIntervention), 0, 1, False, torch.clone)}
    acting = {"bias": torch.tensor([2]), "red": torch.tensor([0])}  # red has no edit at this layer
    apply((hidden, residual), "block", slice(0, WIDTH), edits, acting)
    after = hidden + residual
    torch.testing.assert_close(after[:2], before[:2], rtol=0, atol=0)
    torch.testing.assert_close(after[2], drawn(BiasIntervention)(before[2]), rtol=0, atol=0)
