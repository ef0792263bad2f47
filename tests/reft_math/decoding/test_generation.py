from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation.streamers import BaseStreamer

from reft_math.decoding.gate import Gate
from reft_math.decoding.generation import generate_with_gate
from reft_math.errors import UserError

PAD, VOCABULARY = 0, 40
PROMPTS = [[5, 9, 21], [33, 8, 14, 27, 6, 11], [17, 30, 4, 12]]
WIDTH = 6
BUDGET = 12
OFF, ALWAYS = Gate(0), Gate(None)


class Changed:
    """A model and a context in which a constant is added to the output of its first MLP."""

    def __init__(self) -> None:
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.4,
            pad_token_id=PAD,
            bos_token_id=1,
            eos_token_id=2,
        )
        torch.manual_seed(0)
        self.model = LlamaForCausalLM(config).double().eval()
        self.model.generation_config = GenerationConfig(pad_token_id=PAD, do_sample=False)
        self.shift = torch.randn(32, dtype=torch.float64) * 3
        self.prompt_lengths: list[int] = []

    @contextmanager
    def intervening(self, prompt_length: int) -> Iterator[None]:
        self.prompt_lengths.append(prompt_length)
        mlp = self.model.model.layers[0].mlp
        handle = mlp.register_forward_hook(lambda module, args, output: output + self.shift)
        try:
            yield
        finally:
            handle.remove()

    def by_gate(self, gate: Gate, inputs: torch.Tensor | None = None, **options: Any) -> Any:
        if inputs is None:
            inputs, options["attention_mask"] = batch()
        return generate_with_gate(self.model, inputs, gate, self.intervening, **options)

    def by_hand(
        self, prompt: Sequence[int], num_tokens: int, ends: Sequence[int] = (), budget: int = BUDGET
    ) -> list[int]:
        """Greedy, one row, nothing cached: every token from a forward pass over all before it."""
        sequence = list(prompt)
        for index in range(BUDGET):
            with torch.no_grad():
                if index < num_tokens:
                    with self.intervening(len(prompt)):
                        logits = self.model(torch.tensor([sequence]), use_cache=False).logits
                else:
                    logits = self.model(torch.tensor([sequence]), use_cache=False).logits
            sequence.append(int(logits[0, -1].argmax()))
            if sequence[-1] in ends:
                break
        return sequence[len(prompt) :]


@pytest.fixture
def changed() -> Changed:
    return Changed()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.tensor([[PAD] * (WIDTH - len(prompt)) + prompt for prompt in PROMPTS])
    attention = torch.tensor([[0] * (WIDTH - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    return inputs, attention


def completions(sequences: torch.Tensor) -> list[list[int]]:
    """What follows the prompts, which must have come back as they were."""
    inputs, _ = batch()
    assert sequences.shape[0] % len(inputs) == 0
    assert torch.equal(sequences[:, :WIDTH], inputs.repeat_interleave(len(sequences) // len(inputs), dim=0))
    return sequences[:, WIDTH:].tolist()


def padded(rows: Sequence[list[int]]) -> list[list[int]]:
    longest = max(map(len, rows))
    return [row + [PAD] * (longest - len(row)) for row in rows]


def greedy_rows(changed: Changed, num_tokens: int, **options: Any) -> list[list[int]]:
    return [changed.by_hand(prompt, num_tokens, **options) for prompt in PROMPTS]


def test_the_context_changes_the_tokens_from_the_first_on_and_the_prefix_changes_the_rest(changed: Changed) -> None:
    """What the other tests rest on: interventions for 0, 4 or all tokens give three different texts a row."""
    for prompt in PROMPTS:
        base, gated, always = (changed.by_hand(prompt, num_tokens) for num_tokens in (0, 4, BUDGET))
        assert base[:4] != always[:4] == gated[:4]
        assert gated[4:] != always[4:]
        assert gated[4:] != base[4:]
        assert PAD not in base + gated + always


# --- off and always ----------------------------------------------------------------------------------------------


def test_off_is_stock_generate(changed: Changed) -> None:
    inputs, attention = batch()
    stock = changed.model.generate(inputs, attention_mask=attention, max_new_tokens=BUDGET)
    assert torch.equal(changed.by_gate(OFF, max_new_tokens=BUDGET), stock)
    assert completions(stock) == greedy_rows(changed, 0)


def test_always_is_stock_generate_within_the_context(changed: Changed) -> None:
    inputs, attention = batch()
    with changed.intervening(WIDTH):
        stock = changed.model.generate(inputs, attention_mask=attention, max_new_tokens=BUDGET)
    assert torch.equal(changed.by_gate(ALWAYS, max_new_tokens=BUDGET), stock)
    assert completions(stock) == greedy_rows(changed, BUDGET)


@pytest.mark.parametrize("gate", [OFF, ALWAYS], ids=str)
def test_off_and_always_take_what_stock_generate_takes(changed: Changed, gate: Gate) -> None:
    inputs, attention = batch()
    options = {"max_new_tokens": 5, "num_beams": 3, "return_dict_in_generate": True, "output_scores": True}

    def stock() -> Any:
        return changed.model.generate(inputs, attention_mask=attention, **options)

    if gate == OFF:
        expected = stock()
    else:
        with changed.intervening(WIDTH):
            expected = stock()
    found = changed.by_gate(gate, **options)
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(found.sequences_scores, expected.sequences_scores)


# --- tokens:N ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_tokens", [1, 2, 4, 11])
def test_n_tokens_with_interventions_and_the_rest_from_the_base_that_reads_afresh(
    changed: Changed, num_tokens: int
) -> None:
    sequences = changed.by_gate(Gate(num_tokens), max_new_tokens=BUDGET)
    assert changed.prompt_lengths == [WIDTH]
    assert completions(sequences) == greedy_rows(changed, num_tokens)


@pytest.mark.parametrize("num_tokens", [BUDGET, BUDGET + 1, 1000])
def test_n_at_the_budget_or_beyond_is_always_on(changed: Changed, num_tokens: int) -> None:
    always = changed.by_gate(ALWAYS, max_new_tokens=BUDGET)
    assert torch.equal(changed.by_gate(Gate(num_tokens), max_new_tokens=BUDGET), always)


def test_a_row_does_not_depend_on_its_batch(changed: Changed) -> None:
    together = completions(changed.by_gate(Gate(4), max_new_tokens=BUDGET))
    for prompt, row in zip(PROMPTS, together, strict=True):
        alone = changed.by_gate(Gate(4), torch.tensor([prompt]), max_new_tokens=BUDGET)
        assert alone[0, len(prompt) :].tolist() == row


def ends_of(rows: Sequence[list[int]], *places: tuple[int, int]) -> list[int]:
    return [rows[row][index] for row, index in places]


def test_rows_end_within_the_prefix_after_it_and_not_at_all(changed: Changed) -> None:
    endless = greedy_rows(changed, 4)
    ends = ends_of(endless, (0, 1), (1, 7))
    expected = greedy_rows(changed, 4, ends=ends)
    assert [len(row) for row in expected] == [2, 8, BUDGET], "row 0 ends within the prefix, row 1 after it, row 2 never"
    assert completions(changed.by_gate(Gate(4), max_new_tokens=BUDGET, eos_token_id=ends)) == padded(expected)


def test_a_row_that_ends_with_the_last_token_of_the_prefix_does_not_go_on(changed: Changed) -> None:
    (end,) = ends_of(greedy_rows(changed, 4), (0, 3))
    expected = greedy_rows(changed, 4, ends=[end])
    assert len(expected[0]) == 4
    assert completions(changed.by_gate(Gate(4), max_new_tokens=BUDGET, eos_token_id=end)) == padded(expected)


def test_all_rows_end_within_the_prefix(changed: Changed) -> None:
    ends = ends_of(greedy_rows(changed, 6), (0, 1), (1, 2), (2, 3))
    expected = greedy_rows(changed, 6, ends=ends)
    assert max(map(len, expected)) < 6
    assert completions(changed.by_gate(Gate(6), max_new_tokens=BUDGET, eos_token_id=ends)) == padded(expected)


def test_padding_with_the_end_token_ends_no_row(changed: Changed) -> None:
    (end,) = ends_of(greedy_rows(changed, 4), (1, 7))
    expected = greedy_rows(changed, 4, ends=[end])
    inputs, attention = batch()
    inputs[attention == 0] = end
    found = changed.by_gate(
        Gate(4), inputs, attention_mask=attention, max_new_tokens=BUDGET, eos_token_id=end, pad_token_id=end
    )
    longest = max(map(len, expected))
    assert found[:, WIDTH:].tolist() == [row + [end] * (longest - len(row)) for row in expected]


# --- settings ----------------------------------------------------------------------------------------------------


def test_max_length_counts_the_prompt(changed: Changed) -> None:
    expected = changed.by_gate(Gate(4), max_new_tokens=BUDGET)
    assert torch.equal(changed.by_gate(Gate(4), max_length=WIDTH + BUDGET), expected)
    assert changed.by_gate(Gate(4), max_length=WIDTH + 2).shape == (3, WIDTH + 2)


def test_settings_come_from_a_generation_config_and_leave_it_as_it_was(changed: Changed) -> None:
    ends = ends_of(greedy_rows(changed, 4), (0, 1), (1, 7))
    config = GenerationConfig(max_new_tokens=BUDGET, eos_token_id=ends, pad_token_id=PAD)
    before = config.to_dict(), changed.model.generation_config.to_dict()
    expected = padded(greedy_rows(changed, 4, ends=ends))
    assert completions(changed.by_gate(Gate(4), generation_config=config)) == expected
    assert (config.to_dict(), changed.model.generation_config.to_dict()) == before


def test_what_a_generation_config_leaves_out_is_the_models_own_as_in_stock_generate(changed: Changed) -> None:
    ends = ends_of(greedy_rows(changed, 4), (0, 1), (1, 7))
    changed.model.generation_config.eos_token_id = ends
    inputs, attention = batch()
    config = GenerationConfig(max_new_tokens=BUDGET)
    stock = changed.model.generate(inputs, attention_mask=attention, generation_config=config)
    assert completions(stock) == padded(greedy_rows(changed, 0, ends=ends)), "stock generate stops there"
    assert completions(changed.by_gate(Gate(4), generation_config=config)) == padded(greedy_rows(changed, 4, ends=ends))


@pytest.mark.parametrize("gate", [OFF, ALWAYS, Gate(4)], ids=str)
def test_the_attention_mask_is_read_off_the_padding_on_the_left(changed: Changed, gate: Gate) -> None:
    inputs, _ = batch()
    expected = changed.by_gate(gate, max_new_tokens=BUDGET)
    assert torch.equal(changed.by_gate(gate, inputs, max_new_tokens=BUDGET), expected)


def test_a_padding_token_within_a_prompt_is_attended_to(changed: Changed) -> None:
    prompt = [5, PAD, 21, 7]
    found = changed.by_gate(Gate(4), torch.tensor([[PAD, *prompt]]), max_new_tokens=BUDGET)
    assert found[0, 5:].tolist() == changed.by_hand(prompt, 4)
    assert changed.by_hand(prompt, 4) != changed.by_hand([5, 21, 7], 4)


def test_several_samples_a_prompt_stand_together(changed: Changed) -> None:
    """Sampling among the single best token is greedy."""
    ends = ends_of(greedy_rows(changed, 4), (0, 1), (1, 7))
    found = changed.by_gate(
        Gate(4), max_new_tokens=BUDGET, eos_token_id=ends, do_sample=True, top_k=1, num_return_sequences=2
    )
    expected = padded(greedy_rows(changed, 4, ends=ends))
    assert completions(found) == [row for row in expected for _ in range(2)]


def test_samples_are_reproduced_by_the_seed(changed: Changed) -> None:
    def sample(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        found = changed.by_gate(Gate(4), max_new_tokens=BUDGET, do_sample=True, top_k=0, num_return_sequences=3)
        assert isinstance(found, torch.Tensor)
        return found

    first = sample(0)
    assert first.shape == (9, WIDTH + BUDGET)
    assert len({tuple(row) for row in completions(first)}) == 9
    assert torch.equal(first, sample(0))
    assert not torch.equal(first, sample(1))


# --- what cannot be split at the N-th token ----------------------------------------------------------------------


class Silent(BaseStreamer):
    def put(self, value: torch.Tensor) -> None:
        pass

    def end(self) -> None:
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "num_beams"),
        ({"streamer": Silent()}, "streamer"),
        ({"custom_generate": lambda *args, **kwargs: None}, "custom_generate"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate"),
    ],
)
def test_an_option_that_cannot_be_split_is_an_error_before_anything_runs(
    changed: Changed, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        changed.by_gate(Gate(4), max_new_tokens=BUDGET, **options)
    assert changed.prompt_lengths == []


def test_no_length_is_an_error_that_names_the_option(changed: Changed) -> None:
    with pytest.raises(UserError, match="pass max_new_tokens"):
        changed.by_gate(Gate(4))


def stops_after_two(input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
    return torch.full((len(input_ids),), input_ids.shape[1] >= WIDTH + 2)


def test_stopping_criteria_are_an_error(changed: Changed) -> None:
    with pytest.raises(UserError, match="stopping_criteria"):
        changed.by_gate(Gate(4), max_new_tokens=BUDGET, stopping_criteria=[stops_after_two])


def test_a_minimal_length_is_an_error(changed: Changed) -> None:
    with pytest.raises(UserError, match="min_new_tokens"):
        changed.by_gate(Gate(4), max_new_tokens=BUDGET, min_new_tokens=6, eos_token_id=2)


def test_an_error_within_leaves_no_interventions_behind(changed: Changed) -> None:
    def fails(*args: Any, **kwargs: Any) -> torch.Tensor:
        raise RuntimeError("out of memory")

    before: Callable[..., Any] = changed.model.generate
    changed.model.generate = fails
    for gate in (ALWAYS, Gate(4)):
        with pytest.raises(RuntimeError, match="out of memory"):
            changed.by_gate(gate, max_new_tokens=BUDGET)
    changed.model.generate = before
    assert completions(changed.by_gate(OFF, max_new_tokens=BUDGET)) == greedy_rows(changed, 0)
