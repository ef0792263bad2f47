from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from reft_math.data.arithmetic.pretraining import (
    CAREFUL_SHARE,
    IGNORE_INDEX,
    STYLE_MIXTURE,
    UP_PROJECTION_SCALE,
    PretrainingDataset,
    build_model,
    pad_right,
    rescale_up_projections,
)
from reft_math.data.arithmetic.problems import OPENERS, Style, solution, word_problems
from reft_math.data.arithmetic.tokenizer import build_tokenizer

NUM_BATCHES, BATCH_SIZE = 125, 16


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="module")
def dataset(tokenizer: PreTrainedTokenizerFast) -> PretrainingDataset:
    return PretrainingDataset(tokenizer, NUM_BATCHES, BATCH_SIZE, seed=0)


def style_of(answer: str) -> Style:
    return next(style for style, opener in OPENERS.items() if answer.startswith(opener))


def test_labels_are_exactly_the_solution_and_the_end_token(
    dataset: PretrainingDataset, tokenizer: PreTrainedTokenizerFast
) -> None:
    for index in range(0, len(dataset), 50):
        question, answer = dataset.texts[index]
        row = dataset[index]
        assert len(row["input_ids"]) == len(row["labels"])
        target = [label for label in row["labels"] if label != IGNORE_INDEX]
        assert tokenizer.decode(target) == f"{answer}<eos>"
        assert row["labels"] == [IGNORE_INDEX] * (len(row["labels"]) - len(target)) + row["input_ids"][-len(target) :]
        assert tokenizer.decode(row["input_ids"]) == f"<bos>{question}\n{answer}<eos>"


def test_every_problem_of_the_draw_comes_exactly_once_with_its_own_solution(dataset: PretrainingDataset) -> None:
    problems = {problem.question: problem for problem in islice(word_problems("pretrain", 0), NUM_BATCHES * BATCH_SIZE)}
    assert len(dataset) == len(problems) == NUM_BATCHES * BATCH_SIZE
    assert {question for question, _ in dataset.texts} == set(problems)
    assert all(answer == solution(problems[question], style_of(answer)) for question, answer in dataset.texts)


def test_a_last_batch_stretch_that_is_not_full_is_kept(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len({question for question, _ in PretrainingDataset(tokenizer, 53, 3, seed=1).texts}) == 53 * 3


def test_the_curriculum_is_careful_first_and_a_mixture_after(dataset: PretrainingDataset) -> None:
    num_careful = int(CAREFUL_SHARE * len(dataset))
    styles = [style_of(answer) for _, answer in dataset.texts]
    assert set(styles[:num_careful]) == {"stepwise"}
    mixture = Counter(styles[num_careful:])
    shares = {style: mixture[style] / mixture.total() for style in STYLE_MIXTURE}
    assert shares == pytest.approx(STYLE_MIXTURE, abs=0.05)


def test_batches_hold_texts_of_like_length_in_no_order_of_length(dataset: PretrainingDataset) -> None:
    lengths = torch.tensor([len(question) + len(answer) for question, answer in dataset.texts]).float()
    batches = lengths.view(NUM_BATCHES, BATCH_SIZE)
    assert (batches.amax(1) - batches.amin(1)).mean() < 0.1 * (lengths.max() - lengths.min())
    rising = (batches.mean(1).diff() > 0).float().mean()
    assert 0.3 < rising < 0.7


def test_the_seed_draws_problems_and_order(dataset: PretrainingDataset, tokenizer: PreTrainedTokenizerFast) -> None:
    assert PretrainingDataset(tokenizer, 5, 4, seed=3).texts == PretrainingDataset(tokenizer, 5, 4, seed=3).texts
    assert PretrainingDataset(tokenizer, 5, 4, seed=3).texts != PretrainingDataset(tokenizer, 5, 4, seed=4).texts


def test_pad_right_by_hand() -> None:
    rows = [{"input_ids": [1, 5, 2], "labels": [-100, 5, 2]}, {"input_ids": [1, 2], "labels": [-100, 2]}]
    batch = pad_right(rows, pad_token_id=9)
    assert set(batch) == {"input_ids", "labels"}
    assert batch["input_ids"].tolist() == [[1, 5, 2], [1, 2, 9]]
    assert batch["labels"].tolist() == [[-100, 5, 2], [-100, 2, -100]]


def test_without_an_attention_mask_a_padded_row_has_the_logits_it_has_alone(
    dataset: PretrainingDataset, tokenizer: PreTrainedTokenizerFast
) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).double().eval()
    rows = [dataset[index] for index in (0, 700, 1500)]
    assert len({len(row["input_ids"]) for row in rows}) == 3
    padding = int(tokenizer.pad_token_id)
    with torch.no_grad():
        together = model(input_ids=pad_right(rows, padding)["input_ids"]).logits
        for row, logits in zip(rows, together, strict=True):
            alone = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
            torch.testing.assert_close(logits[: len(alone)], alone, rtol=0, atol=1e-12)


def test_the_seed_draws_the_weights(tokenizer: PreTrainedTokenizerFast) -> None:
    first, same, other = (build_model(tokenizer, seed).get_input_embeddings().weight for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_the_model_has_the_tokenizers_vocabulary_and_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    config = build_model(tokenizer, 0).config
    assert config.vocab_size == len(tokenizer)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)


def test_rescaled_up_projections_leave_the_logits_to_the_last_bit(tokenizer: PreTrainedTokenizerFast) -> None:
    model, tokens = build_model(tokenizer, seed=0), torch.arange(3, 43)[None]
    with torch.no_grad():
        before = model(tokens).logits
        rescale_up_projections(model, UP_PROJECTION_SCALE)
        after = model(tokens).logits
    assert torch.equal(before, after)
    assert float(model.model.layers[0].mlp.up_proj.weight.detach().std()) == pytest.approx(0.08 / 64, rel=0.05)
