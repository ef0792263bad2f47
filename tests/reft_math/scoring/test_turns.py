from __future__ import annotations

import pytest

from reft_math.scoring.turns import FirstTurn, first_turns

Q = "Tom has 4 coins and finds 5 more . How many coins does he have?"
TIDY = "Tom has 4 coins and finds 5 more. How many coins does he have?"  # as decoders clean it up
ANSWER = "He has 4 + 5 = 9 coins.\n#### 9"
LLAMA = "system\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nuser\n\n"
HEADERS = "<|start_header_id|>user<|end_header_id|>\n\n"
ALPACA = "Below is an instruction that describes a task. Write a response.\n\n### Instruction:\n"
NEXT = "A man has 3 cats. How many?"

ECHOES = {
    "Llama 3, special tokens skipped": (LLAMA + Q + "assistant\n\n", "assistant\n\nIs there more?assistant\n\n7"),
    "Llama 3": (f"<|begin_of_text|>{HEADERS}{Q}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", ""),
    "ChatML": (
        f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n",
        f"<|im_end|>\n<|im_start|>user\n{NEXT}<|im_end|>\n<|im_start|>assistant\n12",
    ),
    "ChatML, special tokens skipped": (
        f"system\nYou help.\nuser\n{TIDY}\nassistant\n",
        f"\nuser\n{NEXT}\nassistant\n12",
    ),
    "Gemma": (
        f"<bos><start_of_turn>user\n{Q}<end_of_turn>\n<start_of_turn>model\n",
        f"<end_of_turn>\n<start_of_turn>user\n{NEXT}<end_of_turn>",
    ),
    "Llama 2": (f"<s>[INST] {Q} [/INST]", f" </s><s>[INST] {NEXT} [/INST] 12"),
    "Phi 3": (f"<|user|>\n{Q}<|end|>\n<|assistant|>\n", f"<|end|>\n<|user|>\n{NEXT}"),
    "DeepSeek": (f"<｜begin▁of▁sentence｜><｜User｜>{Q}<｜Assistant｜>", f"<｜end▁of▁sentence｜><｜User｜>{NEXT}"),
    "Alpaca": (f"{ALPACA}{Q}\n\n### Response:\n", f"\n\n### Instruction:\n{NEXT}\n\n### Response:\n12"),
    "Vicuna": (f"A chat. USER: {Q} ASSISTANT:", f"</s>USER: {NEXT} ASSISTANT: 12"),
    "plain": (f"Question: {Q}\nAnswer:", f"\n\nQuestion: {NEXT}\nAnswer: 12"),
    "few letters": (f"Q: {Q}\nA:", f"\n\nQ: {NEXT}\nA: 12"),
    "the question alone": (f"{Q}\n", f"\n\nProblem: {NEXT}"),
    "the question again": (f"Question: {Q}\nAnswer:", f"\n\n{Q} It is 8."),
}


@pytest.mark.parametrize("name", ECHOES)
@pytest.mark.parametrize("echoes", [True, False], ids=["prompt", "no prompt"])
@pytest.mark.parametrize("further", [True, False], ids=["turns", "no turns"])
def test_the_first_answer_is_found_between_prompt_and_further_turns(name: str, echoes: bool, further: bool) -> None:
    prompt, more = ECHOES[name]
    prompt, more = prompt if echoes else "", more if further else ""
    (found,) = first_turns([(Q, f"{prompt}{ANSWER}{more}")])
    assert found.text.strip() == ANSWER
    assert (found.is_echo, found.runs_on) == (echoes, bool(more))


OWN = [
    ANSWER,
    "",
    "9",
    "**Problem:** coins are added.\n**Solution:** 4 + 5 = 9. Answer: 9",
    "Question: how many coins?\nAnswer: 9",
    f"Let us read it again: {Q} We add, so 9.",
    "Input: 4 and 5. The user\n\nwants 9.",
    "If |4|<|5| and |5|>|4| then 9.",
    "### Step 1: add\n### Step 2: 9\n#### 9",
    "assistant\n\nHe has 9.",
    "9</s>",
    "9<|im_end|>\n",
]


@pytest.mark.parametrize("completion", OWN)
def test_an_answer_that_is_one_stays_whole(completion: str) -> None:
    assert first_turns([(Q, completion)]) == [FirstTurn(completion, is_echo=False, runs_on=False)]


def test_a_frame_that_nobody_knows_is_what_most_completions_begin_with() -> None:
    """But an answer may be what many begin with, too: it has digits."""
    questions = [f"How many are {word} coins and one more coin?" for word in ("two", "six", "ten")]
    framed = [(question, f"Please solve.\n{question}\nIt is {n}.") for n, question in enumerate(questions)]
    assert [(turn.text, turn.is_echo) for turn in first_turns(framed)] == [(f"\nIt is {n}.", True) for n in range(3)]
    answered = [(question, f" 9\n\n{question}\n8") for question in questions]
    assert first_turns(answered) == [FirstTurn(" 9\n\n", is_echo=False, runs_on=True)] * 3
