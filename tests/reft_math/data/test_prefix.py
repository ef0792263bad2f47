from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from interventions.positions import Positions
from reft_math.data.arithmetic.problems import arithmetic_problems
from reft_math.data.arithmetic.tokenizer import build_tokenizer
from reft_math.data.prefix import IGNORE_INDEX, PrefixCollator, PrefixDataset, pack_lines, pad_left
from reft_math.data.problem import Problem
from reft_math.data.templates import TEMPLATES
from reft_math.errors import UserError
from reft_math.training.loss import sequence_cross_entropy
from reft_math.training.packing import logits_at

CHAT = TEMPLATES["chat"]
PROBLEMS = arithmetic_problems("train", 40)
SHORT = Problem(id="short", question="How many coins does Anna have now?", answer="7", solution="#### 7")

# The second row's input is one token shorter than its prompt and target together: y_n is predicted, never read.
ROWS = [
    {"prompt_ids": [11, 12, 13, 14], "target_ids": [21, 22]},
    {"prompt_ids": [31, 32], "target_ids": [41, 42, 43]},
    {"prompt_ids": [51], "target_ids": [61]},
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def targets(dataset: PrefixDataset) -> list[list[int]]:
    return [row["target_ids"] for row in dataset]


# --- PrefixDataset -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 10, 17])
def test_a_target_is_the_first_k_tokens_of_the_solution(tokenizer: PreTrainedTokenizerFast, k: int) -> None:
    dataset = PrefixDataset(PROBLEMS, tokenizer, CHAT, k)
    assert len(dataset) == len(PROBLEMS)
    for index, problem in enumerate(PROBLEMS):
        solution_ids = tokenizer.encode(problem.solution, add_special_tokens=False)
        assert len(solution_ids) >= k
        assert dataset[index]["target_ids"] == solution_ids[:k]
        assert tokenizer.decode(dataset[index]["prompt_ids"]) == f"<bos>{problem.question}\n"


def test_a_solution_shorter_than_k_keeps_its_end_token(tokenizer: PreTrainedTokenizerFast) -> None:
    whole = [*tokenizer.encode("#### 7", add_special_tokens=False), tokenizer.eos_token_id]
    assert len(whole) == 4
    kept = {k: targets(PrefixDataset([SHORT], tokenizer, CHAT, k))[0] for k in (3, 4, 5, 100, None)}
    assert kept == {3: whole[:3], 4: whole, 5: whole, 100: whole, None: whole}


def test_full_fraction_is_the_share_of_whole_solutions(tokenizer: PreTrainedTokenizerFast) -> None:
    problems = PROBLEMS * 10
    whole = targets(PrefixDataset(problems, tokenizer, CHAT, None))
    cut = targets(PrefixDataset(problems, tokenizer, CHAT, 10))

    def kept(fraction: float, seed: int = 0) -> list[bool]:
        rows = targets(PrefixDataset(problems, tokenizer, CHAT, 10, fraction, seed))
        assert all(row in (full, short) for row, full, short in zip(rows, whole, cut, strict=True))
        return [row == full for row, full in zip(rows, whole, strict=True)]

    assert not any(kept(0.0))
    assert all(kept(1.0))
    assert 0.4 < sum(kept(0.5)) / len(problems) < 0.6
    assert kept(0.5) == kept(0.5) != kept(0.5, seed=1)


def test_the_template_frames_the_prompt(tokenizer: PreTrainedTokenizerFast) -> None:
    row = PrefixDataset(PROBLEMS[:1], tokenizer, TEMPLATES["plain"], 4)[0]
    assert row["prompt_ids"] == tokenizer.encode(f"Question: {PROBLEMS[0].question}\nAnswer:")
    assert row["target_ids"] == tokenizer.encode(f" {PROBLEMS[0].solution}", add_special_tokens=False)[:4]


@pytest.mark.parametrize("k", [0, -3])
def test_k_below_one_is_an_error(tokenizer: PreTrainedTokenizerFast, k: int) -> None:
    with pytest.raises(UserError, match=f"at least 1; got {k}"):
        PrefixDataset(PROBLEMS, tokenizer, CHAT, k)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_fraction_outside_0_to_1_is_an_error(tokenizer: PreTrainedTokenizerFast, fraction: float) -> None:
    with pytest.raises(UserError, match=rf"\[0, 1\]; got {fraction}"):
        PrefixDataset(PROBLEMS, tokenizer, CHAT, 10, fraction)


def test_a_problem_without_a_solution_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="arithmetic/train/0/0 has none"):
        PrefixDataset([SHORT, replace(PROBLEMS[0], solution="")], tokenizer, CHAT, 10)


# --- PrefixCollator ----------------------------------------------------------------------------------------------


def test_a_batch_by_hand() -> None:
    """Inputs of 5, 4 and 1 tokens: the last two share a line."""
    batch = PrefixCollator(pad_token_id=9, positions=None)(ROWS)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[11, 12, 13, 14, 21], [31, 32, 41, 42, 51]],
        "position_ids": [[0, 1, 2, 3, 4], [0, 1, 2, 3, 0]],
        "targets": [[21, 22, -100], [41, 42, 43], [61, -100, -100]],
        "logits_at": [3, 4, 6, 7, 8, 9],
    }
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_a_batch_of_a_line_a_row_by_hand() -> None:
    batch = PrefixCollator(pad_token_id=9, positions=None, pack=False)(ROWS)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[11, 12, 13, 14, 21], [31, 32, 41, 42, 9], [51, 9, 9, 9, 9]],
        "targets": [[21, 22, -100], [41, 42, 43], [61, -100, -100]],
        "logits_at": [3, 4, 6, 7, 8, 10],
    }


@pytest.mark.parametrize("pack", [True, False])
def test_a_row_without_a_target_is_its_prompt_and_an_empty_one_padding(pack: bool) -> None:
    rows = [*ROWS, {"prompt_ids": [71, 72], "target_ids": []}, {"prompt_ids": [], "target_ids": []}]
    batch = PrefixCollator(pad_token_id=9, positions="generated", pack=pack)(rows)
    assert batch["targets"].tolist()[3:] == [[-100] * 3] * 2
    assert batch["targets"].dtype == torch.int64
    assert batch["input_ids"].flatten()[batch["logits_at"]].tolist() == [14, 21, 32, 41, 42, 51], (
        "what comes before each target"
    )
    tokens = batch["input_ids"][batch["input_ids"] != 9]
    assert sorted(tokens.tolist()) == [11, 12, 13, 14, 21, 31, 32, 41, 42, 51, 71, 72]
    assert batch["intervention_mask"].sum() == 3
    alone = PrefixCollator(pad_token_id=9, positions=None, pack=pack)(rows[4:])
    assert alone["targets"].shape == (1, 0)
    assert (alone["input_ids"] == 9).all()
    assert alone["input_ids"].numel() > 0, "a model reads at least one token"


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ("generated", [[0, 0, 0, 0, 1], [0, 0, 1, 1, 0]]),
        ("solution", [[0, 0, 0, 1, 1], [0, 1, 1, 1, 1]]),
        ("prompt", [[1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]),
    ],
)
def test_the_intervention_mask_by_hand(positions: Positions, expected: list[list[int]]) -> None:
    batch = PrefixCollator(pad_token_id=9, positions=positions)(ROWS)
    mask = batch.pop("intervention_mask")
    assert mask.dtype == torch.bool
    assert mask.int().tolist() == expected
    everywhere = PrefixCollator(pad_token_id=9, positions="all")(ROWS)
    assert batch.keys() == everywhere.keys(), "what acts everywhere needs no mask"
    assert all(torch.equal(batch[name], everywhere[name]) for name in batch)


@pytest.mark.parametrize(
    ("lengths", "lines"),
    [
        ([5, 4, 1], [[0], [1, 2]]),
        ([4, 4, 4], [[0], [1], [2]]),  # two lines would take 2 · 8
        ([2, 7, 3, 5, 3], [[1, 4], [3, 2, 0]]),
        ([9], [[0]]),
    ],
)
def test_lines_by_hand(lengths: list[int], lines: list[list[int]]) -> None:
    assert pack_lines(lengths) == lines


def test_lines_hold_every_row_once_and_never_more_than_padding_would() -> None:
    rng = random.Random(0)
    for _ in range(200):
        lengths = [rng.randint(1, 60) for _ in range(rng.randint(1, 20))]
        lines = pack_lines(lengths)
        assert sorted(row for line in lines for row in line) == list(range(len(lengths)))
        width = max(sum(lengths[row] for row in line) for line in lines)
        assert len(lines) * width <= len(lengths) * max(lengths)
        assert width <= 3 * max(lengths)


def test_padding_is_never_a_target_even_where_it_is_the_end_token(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    end = int(tokenizer.eos_token_id)
    dataset = PrefixDataset([SHORT, *PROBLEMS[:3]], tokenizer, CHAT, 10)
    batch = PrefixCollator(pad_token_id=end, positions=None)([dataset[index] for index in range(4)])
    assert (batch["targets"] != IGNORE_INDEX).sum(dim=1).tolist() == [4, 10, 10, 10]
    assert (batch["targets"] == end).sum(dim=1).tolist() == [1, 0, 0, 0], "the short solution's own, and no padding"


def test_pad_left_by_hand() -> None:
    assert pad_left([torch.tensor([1]), torch.tensor([2, 3])], 7).tolist() == [[7, 1], [2, 3]]


# --- METHOD §2: truncating is the same as masking ----------------------------------------------------------------


def test_the_truncated_batch_has_the_loss_and_gradient_of_whole_solutions_masked_after_k(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    k = 10
    problems = [SHORT, *PROBLEMS[:2], *arithmetic_problems("train", 2, style="at_once"), *PROBLEMS[7:9]]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).double().train()

    def gradients(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        names, parameters = zip(*model.named_parameters(), strict=True)
        return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))

    batch = PrefixCollator(int(tokenizer.pad_token_id), None)(list(PrefixDataset(problems, tokenizer, CHAT, k)))
    wanted = batch.pop("targets")
    with logits_at(model, batch.pop("logits_at")):
        truncated_loss = sequence_cross_entropy(model(**batch, use_cache=False).logits, wanted).mean()

    whole = list(PrefixDataset(problems, tokenizer, CHAT, None))
    token_ids = [row["prompt_ids"] + row["target_ids"] for row in whole]
    longest = max(map(len, token_ids))
    assert sum(map(len, token_ids)) > batch["input_ids"].numel(), "there is something to truncate"
    inputs = torch.tensor([row + [int(tokenizer.pad_token_id)] * (longest - len(row)) for row in token_ids])
    log_probabilities = model(input_ids=inputs).logits.log_softmax(dim=-1)
    losses = []
    for number, row in enumerate(whole):
        first = len(row["prompt_ids"])
        kept = row["target_ids"][:k]
        terms = [log_probabilities[number, first + offset - 1, token] for offset, token in enumerate(kept)]
        losses.append(-torch.stack(terms).mean())
    masked_loss = torch.stack(losses).mean()

    torch.testing.assert_close(truncated_loss, masked_loss, rtol=0, atol=1e-10)
    truncated, masked = gradients(truncated_loss), gradients(masked_loss)
    assert min(float(gradient.abs().max()) for gradient in masked.values()) > 1e-4
    torch.testing.assert_close(truncated, masked, rtol=0, atol=1e-10)
