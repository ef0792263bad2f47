from __future__ import annotations

import torch

from reft_math.data.arithmetic.problems import arithmetic_problems
from reft_math.data.templates import TEMPLATES
from reft_math.decoding.completions import CompletionSettings, complete
from reft_math.models import load_model, load_tokenizer
from reft_math.probes.answers import complete_with_tokens


def test_tokens_are_those_of_the_text_up_to_the_end_token() -> None:
    model, tokenizer = load_model("arithmetic"), load_tokenizer("arithmetic")
    decoding = CompletionSettings(tokenizer, TEMPLATES["chat"], [2], max_new_tokens=14)
    questions = [problem.question for problem in arithmetic_problems("test", 8)]
    settings = {"generate": model.generate, "decoding": decoding, "device": torch.device("cpu")}
    found = complete_with_tokens(questions, None, **settings)
    assert [{name: row[name] for name in row if name != "token_ids"} for row in found] == complete(
        questions, None, **settings
    )
    assert {row["finished"] for row in found} == {True, False}
    for row in found:
        assert len(row["token_ids"]) == row["num_tokens"]
        assert (row["token_ids"][-1] == 2) == row["finished"]
        assert decoding.text(row["token_ids"]) == row["completion"]
