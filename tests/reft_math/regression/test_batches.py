from __future__ import annotations

import pytest
import torch
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase

from reft_math.data.regression_rows import RegressionRow
from reft_math.data.templates import get_template
from reft_math.regression.batches import RegressionCollator, encode_rows

ROWS = [RegressionRow("a", "good", 4.5), RegressionRow("b", "not so good", 2), RegressionRow("c", "bad", 0.1)]


def test_rows_become_their_prompts_tokens_and_their_numbers(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = encode_rows(ROWS, tokenizer, get_template("plain", tokenizer))
    assert [tokenizer.decode(row["prompt_ids"]) for row in encoded] == [
        f"Question: {row.text}\nAnswer:" for row in ROWS
    ]
    assert [row["target"] for row in encoded] == [4.5, 2, 0.1]


def test_no_end_stands_between_prompt_and_number() -> None:
    """Some tokenizers put one after every text."""
    tokenizer = ByT5Tokenizer()
    assert tokenizer.encode("good")[-1] == tokenizer.eos_token_id
    (row,) = encode_rows(ROWS[:1], tokenizer, get_template("plain", tokenizer))
    assert tokenizer.decode(row["prompt_ids"]) == "Question: good\nAnswer:"


def test_batches_are_padded_on_the_left() -> None:
    rows = [{"prompt_ids": [5, 6, 7], "target": 1.5}, {"prompt_ids": [8], "target": 2}]
    batch = RegressionCollator(pad_token_id=9)(rows)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 7], [9, 9, 8]],
        "attention_mask": [[1, 1, 1], [0, 0, 1]],
        "targets": [1.5, 2.0],
    }
    assert [tensor.dtype for tensor in batch.values()] == [torch.int64, torch.int64, torch.float32]


@pytest.mark.parametrize("pad_token_id", [0, 5])
def test_padding_goes_by_the_mask_and_not_by_its_token(pad_token_id: int) -> None:
    """Where the end of sequence stands in for it, prompts may hold the token itself."""
    batch = RegressionCollator(pad_token_id)([{"prompt_ids": [5, 0], "target": 1}, {"prompt_ids": [5], "target": 2}])
    assert batch["attention_mask"].tolist() == [[1, 1], [0, 1]]
    assert batch["input_ids"].tolist() == [[5, 0], [pad_token_id, 5]]
