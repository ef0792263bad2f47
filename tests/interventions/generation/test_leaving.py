"""Rows that have ended leave the batch, and nothing else shows it: tests compare with decoding that keeps them."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from conftest import FAMILIES
from gated_batches import BUDGET, GATES, PAIRED, PROMPTS, UNDRAWN, WIDTH, TinyModel, batch, randomised, rows_run
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList, StoppingCriteriaList

from interventions.generation import Handoff
from interventions.leaving import sample_leaving
from interventions.logits import FiniteLogits, NotFiniteLogits
from reft_math.errors import UserError

FIVE = [*PROMPTS, [33, 8], [50, 4, 19, 28]]
LENGTHS = torch.tensor([6, BUDGET, 1, 3, 6])
RUN = [5, *[4] * 2, *[3] * 3, *[1] * 4]  # rows in each of the ten forward passes
STOCK_CASES: list[dict[str, Any]] = [
    {"do_sample": True},
    {"num_beams": 1, "return_dict_in_generate": True, "output_scores": True, "output_logits": True},
    {"return_dict_in_generate": True, "output_hidden_states": True},
    {"eos_token_id": None},
    {"cache_implementation": "static"},
    {"use_cache": False},
]


class Ends:
    """Ends row ``r`` after ``LENGTHS[r]`` tokens, and remembers what it was shown."""

    def __init__(self, lengths: torch.Tensor = LENGTHS) -> None:
        self.lengths = lengths
        self.shown: list[list[list[int]]] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.shown.append(input_ids.tolist())
        return self.lengths <= input_ids.shape[1] - WIDTH


def settings(ends: Ends | None = None, **changes: Any) -> dict[str, Any]:
    criteria = StoppingCriteriaList([ends or Ends()])
    return {"stopping_criteria": criteria, "eos_token_id": UNDRAWN, "max_new_tokens": BUDGET, **changes}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_are_stock_generates(tiny_model: TinyModel, family: str) -> None:
    model = tiny_model(family, **({"sliding_window": 4} if family in ("Mistral", "Gemma2", "Gemma3", "Phi3") else {}))
    stock, ours = Ends(), Ends()
    expected = model.generate(**batch(FIVE), **settings(stock))
    with rows_run(model) as rows:
        found = model.generate(**batch(FIVE), custom_generate=sample_leaving, **settings(ours))
    assert torch.equal(found, expected)
    assert ours.shown == stock.shown
    assert rows == RUN


@pytest.mark.parametrize("prompts", [[[5, 9, 33], [7, 21, 3], [12, 4, 4]], [[5, 9, 33]]])
@pytest.mark.parametrize("changes", [{}, {"repetition_penalty": 2.0}, {"prefill_chunk_size": 2}])
def test_end_tokens_are_stock_generates(
    tiny_model: TinyModel, prompts: list[list[int]], changes: dict[str, Any]
) -> None:
    """Without padding stock generate drops the mask."""
    model = tiny_model()
    endless = model.generate(**batch(prompts), max_new_tokens=BUDGET, eos_token_id=None, **changes)
    ends = {int(endless[row, 3 + step]) for row, step in ((0, 4), (len(prompts) - 1, 2))}
    options = {"max_new_tokens": BUDGET, "eos_token_id": list(ends), "return_dict_in_generate": True, **changes}
    expected = model.generate(**batch(prompts), **options)
    found = model.generate(**batch(prompts), custom_generate=sample_leaving, **options)
    assert torch.equal(found.sequences, expected.sequences)
    assert found.past_key_values is None


@pytest.mark.parametrize("changes", STOCK_CASES)
def test_rows_stay_where_something_of_them_is_drawn_at_random_or_asked_for(
    tiny_model: TinyModel, changes: dict[str, Any]
) -> None:
    model = tiny_model()
    outputs = []
    for loop in ({}, {"custom_generate": sample_leaving}):
        torch.manual_seed(3)
        outputs.append(model.generate(**batch(FIVE), **settings(**changes), **loop))
    expected, found = outputs
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
        return
    assert found.keys() == expected.keys()
    assert torch.equal(found.sequences, expected.sequences)
    for name in ("scores", "logits"):
        for ours, theirs in zip(found.get(name) or (), expected.get(name) or (), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("handoff", get_args(Handoff))
@pytest.mark.parametrize("family", ["Llama", "Gemma3"])
def test_a_gates_measurements_and_tokens_stay_the_same(
    tiny_model: TinyModel, gate: str, handoff: Handoff, family: str
) -> None:
    model = tiny_model(family, **({"sliding_window": 4} if family == "Gemma3" else {}))
    reft_model = randomised(model)
    options = {"gate": gate, "handoff": handoff, "return_dict_in_generate": True}
    expected = reft_model.generate(**batch(FIVE), **options, **settings())
    with rows_run(model) as rows:
        found = reft_model.generate(**batch(FIVE), custom_generate=sample_leaving, **options, **settings())
    assert type(found) is type(expected)
    assert torch.equal(found.sequences, expected.sequences)
    if gate in PAIRED:
        assert torch.equal(found.closing_positions, expected.closing_positions)
        assert expected.kl is None or torch.equal(found.kl.nan_to_num(), expected.kl.nan_to_num())
    if gate not in PAIRED or 0 <= found.closing_positions[1] < 6:  # closed before the last rows but one end
        assert rows[-4:] == [1] * 4


def test_it_begins_where_a_given_cache_ends(tiny_model: TinyModel) -> None:
    model = tiny_model()
    inputs = batch(FIVE)
    sequences = []
    for loop in ({}, {"custom_generate": sample_leaving}):
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(inputs["input_ids"][:, :3], attention_mask=inputs["attention_mask"][:, :3], past_key_values=cache)
        sequences.append(model.generate(**inputs, past_key_values=cache, **settings(), **loop))
    assert torch.equal(*sequences)


class Spoiled(LogitsProcessor):  # type: ignore[misc]
    """Makes the logits NaN of the row whose prompt is ``FIVE[4]``, from the fifth token on."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] > WIDTH + 4:
            scores[(input_ids[:, WIDTH - 4 : WIDTH] == torch.tensor(FIVE[4])).all(dim=1)] = torch.nan
        return scores


@pytest.mark.parametrize("gate", ["off", "tokens:2"])
def test_a_row_without_finite_logits_is_named_by_its_place_in_the_whole_batch(tiny_model: TinyModel, gate: str) -> None:
    reft_model = randomised(tiny_model())
    processors = LogitsProcessorList([Spoiled(), FiniteLogits()])
    options = settings(gate=gate, logits_processor=processors, custom_generate=sample_leaving)
    with pytest.raises(NotFiniteLogits) as error:
        reft_model.generate(**batch(FIVE), **options)
    assert error.value.row == 4


def test_beams_are_an_error(tiny_model: TinyModel) -> None:
    with pytest.raises(UserError, match="greedily or samples; got beam search"):
        tiny_model().generate(**batch(FIVE), num_beams=2, custom_generate=sample_leaving, **settings())
