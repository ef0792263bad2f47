from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from interventions import PrefixReftConfig, get_prefix_reft_model
from reft_math.errors import UserError
from reft_math.regression.grid import Grid, make_grid, number_texts
from reft_math.regression.predictors import rail, rail_from_samples
from reft_math.regression.sampling import write_numbers
from reft_math.regression.scores import grid_log_probs

TinyModel = Callable[..., PreTrainedModel]
TokenizerOfKind = Callable[[str], PreTrainedTokenizerBase]

VOCABULARY = 384  # ByT5's, one byte a token: only the ten digits are numbers of one token
END = 1
TEXTS = ("The score is 2.5 of 12. Answer:", "Answer:", "of 3 Answer:")
SLIDING = {"sliding_window": 6}  # shorter than the prompts
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("Llama", {}),
    ("Mistral", SLIDING),
    ("Gemma2", SLIDING),
    ("Gemma3", {**SLIDING, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
]


@pytest.fixture
def tokenizer(tokenizer_of_kind: TokenizerOfKind) -> PreTrainedTokenizerBase:
    return tokenizer_of_kind("one byte a token")


@pytest.fixture
def prompts(tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    rows = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    length = max(map(len, rows))
    input_ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    return {"input_ids": input_ids, "attention_mask": (input_ids != 0).long()}


def stock(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: dict[str, torch.Tensor], **settings: Any
) -> list[str]:
    """One prompt and one sample after the other, cut by hand."""
    drawn = model.generate(**prompts, eos_token_id=END, pad_token_id=0, **settings)[:, prompts["input_ids"].shape[1] :]
    rows = [row[: row.index(END)] if END in row else row for row in drawn.tolist()]
    return [tokenizer.decode(row, skip_special_tokens=True).split("\n")[0] for row in rows]


def digit_writer(tiny_model: TinyModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Mostly writes digits: the logits of all other tokens are 0."""
    model = tiny_model("Llama", vocab_size=VOCABULARY)
    digits = tokenizer.convert_tokens_to_ids(list("0123456789"))
    with torch.no_grad():
        kept = model.lm_head.weight[digits].clone()
        model.lm_head.weight.zero_()
        model.lm_head.weight[digits] = 4 * kept
    return model


def grid_of(tokenizer: PreTrainedTokenizerBase, numbers: Sequence[int], terminator: int | None = None) -> Grid:
    return make_grid(tokenizer, number_texts(numbers), "", leading_space=False, terminator=terminator)


# --- the same as stock generation -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "changes"), MODELS)
def test_greedy_texts_are_those_of_stock_generate(
    tiny_model: TinyModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: dict[str, torch.Tensor],
    family: str,
    changes: dict[str, Any],
) -> None:
    model = tiny_model(family, vocab_size=VOCABULARY, **changes)
    texts = write_numbers(model, tokenizer, **prompts, end_token_ids=[END])
    assert texts == [[text] for text in stock(model, tokenizer, prompts, do_sample=False, max_new_tokens=8)]


@pytest.mark.parametrize(("family", "changes"), MODELS)
def test_samples_from_one_reading_of_the_prompt_are_those_of_stock_generate(
    tiny_model: TinyModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: dict[str, torch.Tensor],
    family: str,
    changes: dict[str, Any],
) -> None:
    """By the same seed, which stock generation spends on the same rows in the same order."""
    model = tiny_model(family, vocab_size=VOCABULARY, **changes)
    torch.manual_seed(0)
    texts = write_numbers(model, tokenizer, **prompts, end_token_ids=[END], samples=4, temperature=0.7)
    torch.manual_seed(0)
    settings = {"do_sample": True, "temperature": 0.7, "top_k": 0, "num_return_sequences": 4, "max_new_tokens": 8}
    expected = stock(model, tokenizer, prompts, **settings)
    assert texts == [expected[:4], expected[4:8], expected[8:]]


@pytest.mark.parametrize("positions", ["all", "solution", "generated", "prompt"])
@pytest.mark.parametrize("samples", [1, 4])
def test_interventions_act_as_in_their_own_generation(
    tiny_model: TinyModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: dict[str, torch.Tensor],
    positions: Any,
    samples: int,
) -> None:
    reft_model = get_prefix_reft_model(tiny_model(vocab_size=VOCABULARY), PrefixReftConfig(positions=positions))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in reft_model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    base: Any = reft_model.model
    draw = {"end_token_ids": [END], "samples": samples, "temperature": 1.0}
    torch.manual_seed(0)
    with reft_model.decoding(prompts["input_ids"].shape[1]):
        texts = write_numbers(base, tokenizer, **prompts, **draw)
    torch.manual_seed(0)
    settings = {"do_sample": True, "top_k": 0, "num_return_sequences": samples, "max_new_tokens": 8}
    expected = stock(reft_model, tokenizer, prompts, gate="always", **settings)
    assert list(chain(*texts)) == expected
    torch.manual_seed(0)
    assert texts != write_numbers(base, tokenizer, **prompts, **draw)


@pytest.mark.parametrize("temperature", [None, 1.0])
def test_a_checkpoints_habits_have_no_say(
    tiny_model: TinyModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: dict[str, torch.Tensor],
    temperature: float | None,
) -> None:
    model = tiny_model("Llama", vocab_size=VOCABULARY)
    written = []
    narrow = {"temperature": 0.1, "top_k": 2, "top_p": 0.1, "min_p": 0.9, "typical_p": 0.1}
    repeats = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1}
    for habits in ({}, {"do_sample": True, **narrow}, repeats, {"max_length": 3, "cache_implementation": "static"}):
        model.generation_config = GenerationConfig(**habits)
        torch.manual_seed(0)
        samples = 1 if temperature is None else 3
        written.append(
            write_numbers(model, tokenizer, **prompts, end_token_ids=[], samples=samples, temperature=temperature)
        )
    assert all(texts == written[0] for texts in written)


def test_each_prompt_is_read_once_and_its_last_token_by_every_sample(
    tiny_model: TinyModel, tokenizer: PreTrainedTokenizerBase, prompts: dict[str, torch.Tensor]
) -> None:
    model = tiny_model("Llama", vocab_size=VOCABULARY)
    read: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: read.append(args[0].numel()))
    write_numbers(model, tokenizer, **prompts, end_token_ids=[], max_new_tokens=4, samples=5, temperature=1)
    rows, length = prompts["input_ids"].shape
    assert read == [rows * (length - 1)] + [rows * 5] * 4


@pytest.mark.parametrize("row", [[60], [50, 60]])
def test_prompts_of_one_token_are_continued_too(
    tiny_model: TinyModel, tokenizer: PreTrainedTokenizerBase, row: list[int]
) -> None:
    """Nothing stands before their last token that could be read once."""
    model = tiny_model("Llama", vocab_size=VOCABULARY)
    prompts = {
        "input_ids": torch.tensor([row, [*[0] * (len(row) - 1), 70]]),
        "attention_mask": torch.tensor([[1] * len(row), [*[0] * (len(row) - 1), 1]]),
    }
    torch.manual_seed(0)
    texts = write_numbers(model, tokenizer, **prompts, end_token_ids=[END], samples=3, temperature=1.0)
    torch.manual_seed(0)
    settings = {"do_sample": True, "top_k": 0, "num_return_sequences": 3, "max_new_tokens": 8}
    assert list(chain(*texts)) == stock(model, tokenizer, prompts, **settings)


# --- the distribution that the grid knows ---------------------------------------------------------------------------


@torch.no_grad()
def test_the_mean_of_samples_approaches_the_rail_predictor(
    tiny_model: TinyModel, tokenizer: PreTrainedTokenizerBase, prompts: dict[str, torch.Tensor]
) -> None:
    """Within four standard errors, ``4·√((Σ p·y² − (Σ p·y)²) / n)``; what is no digit counts as 0 in both."""
    model, grid, samples = digit_writer(tiny_model, tokenizer), grid_of(tokenizer, range(10)), 2000
    log_probs = grid_log_probs(model, **prompts, grid=grid).double()
    mean, square = rail(log_probs, grid.values), rail(log_probs, grid.values**2)
    assert 0.2 < log_probs.exp().sum(dim=1).min() < 0.999
    torch.manual_seed(0)
    texts = write_numbers(
        model, tokenizer, **prompts, end_token_ids=[END], max_new_tokens=1, samples=samples, temperature=1.0
    )
    drawn = torch.tensor([rail_from_samples(row) for row in texts], dtype=torch.float64)
    standard_error = ((square - mean**2) / samples).sqrt()
    assert (standard_error > 0).all()
    assert ((drawn - mean).abs() < 4 * standard_error).all()


@torch.no_grad()
def test_strings_of_several_tokens_come_as_often_as_the_grid_says(
    tiny_model: TinyModel, tokenizer: PreTrainedTokenizerBase, prompts: dict[str, torch.Tensor]
) -> None:
    """Frequencies within four standard errors, ``√(p(1 − p)/n)``, of the grid's probabilities."""
    model, grid, samples = digit_writer(tiny_model, tokenizer), grid_of(tokenizer, range(10, 100)), 2000
    probabilities = grid_log_probs(model, **prompts, grid=grid).double().exp()
    torch.manual_seed(0)
    texts = write_numbers(
        model, tokenizer, **prompts, end_token_ids=[END], max_new_tokens=2, samples=samples, temperature=1.0
    )
    counts = [Counter(row) for row in texts]
    found = torch.tensor([[count[text] / samples for text in grid.texts] for count in counts], dtype=torch.float64)
    likely = probabilities > 0.005  # elsewhere a count is not near to normal
    standard_error = (probabilities * (1 - probabilities) / samples).sqrt()
    assert likely.sum() > 10
    assert ((found - probabilities).abs() < 4 * standard_error)[likely].all()


def test_a_low_temperature_writes_the_greedy_text(
    tiny_model: TinyModel, tokenizer: PreTrainedTokenizerBase, prompts: dict[str, torch.Tensor]
) -> None:
    model = tiny_model("Llama", vocab_size=VOCABULARY)
    (greedy,), *_ = write_numbers(model, tokenizer, **prompts, end_token_ids=[END])
    drawn, *_ = write_numbers(model, tokenizer, **prompts, end_token_ids=[END], samples=3, temperature=1e-4)
    assert drawn == [greedy] * 3


# --- where a completion ends ----------------------------------------------------------------------------------------


class Scripted:
    """Writes given tokens, row by row, and fills up as ``generate`` does."""

    def __init__(self, *rows: Sequence[int]) -> None:
        longest = max(map(len, rows))
        self.rows = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])

    def generate(self, input_ids: torch.Tensor, **settings: Any) -> Any:
        return type("Output", (), {"sequences": torch.cat([input_ids, self.rows], dim=1)})


def test_texts_end_before_an_end_token_and_at_the_first_newline(tokenizer: PreTrainedTokenizerBase) -> None:
    def tokens(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    semicolon = tokens(";")[0]
    rows = [
        [*tokens("3.5"), END, *tokens("7")],
        [*tokens(" 4"), semicolon, END],
        tokens("2\nscore"),
        [END],
        tokens("12345678"),
    ]
    model: Any = Scripted(*rows)
    input_ids = torch.full((len(rows), 2), 60)
    texts = write_numbers(model, tokenizer, input_ids, torch.ones_like(input_ids), [END, semicolon])
    assert texts == [["3.5"], [" 4"], ["2"], [""], ["12345678"]]


@pytest.mark.parametrize(
    ("samples", "temperature", "message"),
    [
        (1, 0.0, "temperature above 0; got 0.0"),
        (1, -1.0, "temperature above 0; got -1.0"),
        (1, float("nan"), "temperature above 0; got nan"),
        (0, 1.0, "at least one answer .* got 0 samples"),
        (0, None, "at least one answer .* got 0 samples"),
        (2, None, "all the same; got 2 samples: give a temperature"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(
    tiny_model: TinyModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: dict[str, torch.Tensor],
    samples: int,
    temperature: float | None,
    message: str,
) -> None:
    model = tiny_model("Llama", vocab_size=VOCABULARY)
    with pytest.raises(UserError, match=message) as caught:
        write_numbers(model, tokenizer, **prompts, end_token_ids=[END], samples=samples, temperature=temperature)
    assert "\n" not in str(caught.value)
