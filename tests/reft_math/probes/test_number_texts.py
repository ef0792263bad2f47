from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from reft_math.data.problem import Problem
from reft_math.data.registry import load_problems
from reft_math.data.templates import encode_prompt, encode_target, get_template
from reft_math.errors import UserError
from reft_math.models import load_tokenizer
from reft_math.probes.number_texts import FORMS, ProbeText, Sum, draw_sums, probe_text, read_answer

STORY = Problem("story", "Anna has 47 books. She finds 38 books. How many?", "170", "So 47+38=85\n85*2= $170\n#### 170")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer("arithmetic")


def read(
    problem: Problem, tokenizer: PreTrainedTokenizerBase, template: str = "chat", largest: float = 198
) -> ProbeText:
    return probe_text(problem, get_template(template, tokenizer), tokenizer, largest)


def test_every_number_has_its_role_and_place(tokenizer: PreTrainedTokenizerBase) -> None:
    readings = [(item.value, item.role, item.place) for item in read(STORY, tokenizer).readings]
    assert readings == [
        (47, "operand", "question 1"),
        (38, "operand", "question 2"),
        (47, "operand", "term 1"),
        (38, "operand", "term 2"),
        (85, "result", "result 1"),
        (85, "upcoming", "upcoming 1"),
        (85, "operand", "term 3"),
        (2, "operand", "term 4"),
        (170, "result", "result 2"),
        (170, "upcoming", "upcoming 2"),
    ]


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_numbers_are_read_off_their_last_token(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    problems = [*load_problems("arithmetic", "test", limit=20), Sum(47, 38).solved("worked")]
    for problem in problems:
        text = read(problem, tokenizer, template)
        assert text.problem == problem.id
        for item in text.readings:
            before = tokenizer.decode(text.token_ids[: item.token + 1])
            after = tokenizer.decode(text.token_ids[item.token + 1 :])
            if item.role == "upcoming":
                assert before.endswith("=")
                assert after.startswith(str(item.value))
            else:
                assert before.endswith(str(item.value))
                assert not before[: -len(str(item.value))][-1:].isdigit()
                assert not after[:1].isdigit()


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_texts_are_tokens_as_the_model_is_trained_on(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    prompt_template = get_template(template, tokenizer)
    problem = load_problems("arithmetic", "test", limit=1)[0]
    solution = problem.solution.partition("####")[0]
    expected = encode_prompt(prompt_template, problem.question, tokenizer)
    expected = expected + encode_target(prompt_template, problem.question, solution, tokenizer)[:-1]
    assert read(problem, tokenizer, template).token_ids == expected


def test_large_numbers_are_left_out_and_keep_their_count(tokenizer: PreTrainedTokenizerBase) -> None:
    problem = Problem("", "Tom has 1,250.5 pens, 0 cards and 12 books.", "", "")
    few, all_ = (read(problem, tokenizer, largest=largest).readings for largest in (99, 2000))
    assert [(item.value, item.place) for item in few] == [(12, "question 3")]
    assert [(item.value, item.place) for item in all_] == [(1250.5, "question 1"), (12, "question 3")]


def test_a_templates_own_numbers_are_not_the_problems(tokenizer: PreTrainedTokenizerBase) -> None:
    dated = load_tokenizer("arithmetic")
    dated.chat_template = "{{ bos_token }}26 Jul 2024\n{% for m in messages %}{{ m.content }}\n{% endfor %}"
    assert [item.place for item in read(STORY, dated).readings] == [
        item.place for item in read(STORY, tokenizer).readings
    ]


@pytest.mark.parametrize("form", FORMS)
def test_a_sums_prompt_ends_where_its_result_begins(tokenizer: PreTrainedTokenizerBase, form: str) -> None:
    item, template = Sum(47, 38), get_template("chat", tokenizer)
    prompt = item.prompt(form, template, tokenizer)
    assert tokenizer.decode(prompt).endswith("47+38=")
    solved = probe_text(item.solved(form), template, tokenizer, 198)
    assert solved.token_ids[: len(prompt)] == prompt
    assert tokenizer.decode(solved.token_ids[len(prompt) :]) == "85"


def test_sums_are_drawn_once_in_either_order() -> None:
    sums = draw_sums(2, 1500, seed=0)
    assert len({frozenset((item.a, item.b)) for item in sums}) == 1500
    assert {len(str(number)) for item in sums for number in (item.a, item.b)} == {2}
    assert sums == draw_sums(2, 1500, seed=0)
    assert sums != draw_sums(2, 1500, seed=1)
    assert {item.result for item in draw_sums(1, 45, seed=0)} == set(range(2, 19))


def test_more_sums_than_there_are_is_an_error() -> None:
    with pytest.raises(UserError, match="there are 45 sums of two numbers of 1 digits, and 46 are needed"):
        draw_sums(1, 46, seed=0)


@pytest.mark.parametrize(
    ("text", "answer"),
    [("85\n85*2", 85), (" $1,085.", 1085), ("85.5", 85.5), ("\n85", 85), ("=85", None), ("Let 85", None), ("", None)],
)
def test_an_answer_is_the_number_a_continuation_starts_with(text: str, answer: float | None) -> None:
    assert read_answer(text) == answer
