from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from byte_tokenizer import make_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.generation.utils import GenerateDecoderOnlyOutput

from interventions import PrefixReftConfig, get_prefix_reft_model
from interventions.generation import GatedOutput
from interventions.leaving import sample_leaving
from reft_math.data.arithmetic.problems import OPENERS
from reft_math.data.arithmetic.tokenizer import build_tokenizer
from reft_math.data.templates import TEMPLATES
from reft_math.decoding.completions import CompletionSettings, complete, complete_by_engine, complete_in_engine
from reft_math.decoding.engine import Continuation
from reft_math.errors import UserError

CPU = torch.device("cpu")
EOS = 2
QUESTIONS = [
    "Anna has 3 apples. How many apples does Anna have now?",
    "Tom has 14 coins. She buys 5 more. How many coins does Tom have now?",
    "Ben has 3 pens. Then the number of pens doubles. He loses 2 pens. How many pens does Ben have now?",
    "Lucy has 7 cards. He finds 2 cards. How many cards does Lucy have now?",
    "Omar has 9 books. How many books does Omar have now?",
]
ANSWERS = ["3", "19", "4", "9", "9"]
RIGHT = {question: f"#### {answer}<eos>" for question, answer in zip(QUESTIONS, ANSWERS, strict=True)}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture
def decoding(tokenizer: PreTrainedTokenizerFast) -> CompletionSettings:
    return CompletionSettings(tokenizer, TEMPLATES["chat"], [EOS], max_new_tokens=20)


class Scripted:
    """A ``generate`` that answers each question with its text of the script and remembers what it was asked."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, script: dict[str, str], stop_at: int | None = None) -> None:
        self.tokenizer, self.script, self.stop_at = tokenizer, script, stop_at
        self.batches: list[list[str]] = []
        self.prompts: list[str] = []
        self.settings: dict[str, Any] = {}

    def __call__(
        self, inputs: torch.Tensor, attention_mask: torch.Tensor, **settings: Any
    ) -> GenerateDecoderOnlyOutput:
        assert inputs.shape == attention_mask.shape
        prompts = [self.tokenizer.decode(row[mask.bool()]) for row, mask in zip(inputs, attention_mask, strict=True)]
        questions = [prompt.removeprefix("<bos>").partition("\n")[0] for prompt in prompts]
        self.batches.append(questions)
        if len(self.batches) == self.stop_at:
            raise KeyboardInterrupt
        self.prompts += prompts
        self.settings = settings
        answers = [
            torch.tensor(self.tokenizer.encode(self.script[name], add_special_tokens=False)) for name in questions
        ]
        padding = settings["pad_token_id"]
        drawn = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=padding)
        return GenerateDecoderOnlyOutput(torch.cat([inputs, drawn], dim=1))


def ask(questions: Sequence[str], generate: Any, decoding: CompletionSettings) -> list[dict[str, Any]]:
    return complete(questions, None, generate=generate, decoding=decoding, device=CPU)


def test_a_completion_is_cut_at_the_first_of_any_end_token(
    tokenizer: PreTrainedTokenizerFast, decoding: CompletionSettings
) -> None:
    hashes = tokenizer.convert_tokens_to_ids("####")
    decoding = replace(decoding, end_token_ids=[EOS, hashes])
    scripts = ["3 apples<eos>", "3 apples####7<eos>", "3<eos>4<eos>", "3 apples 4 5", "<eos>"]
    generate = Scripted(tokenizer, dict(zip(QUESTIONS, scripts, strict=True)))
    assert ask(QUESTIONS, generate, decoding) == [
        {"completion": "3 apples", "num_tokens": 3, "finished": True},
        {"completion": "3 apples", "num_tokens": 3, "finished": True},
        {"completion": "3", "num_tokens": 2, "finished": True},
        {"completion": "3 apples 4 5", "num_tokens": 6, "finished": False},
        {"completion": "", "num_tokens": 1, "finished": True},
    ]


def test_a_plain_completion_ends_at_the_next_question() -> None:
    """An end token behind it counts for nothing, nor does one that only begins. A token is a byte, or special."""
    tokenizer = make_tokenizer()
    decoding = CompletionSettings(tokenizer, TEMPLATES["plain"], [int(tokenizer.eos_token_id)], max_new_tokens=20)
    cases = {
        " 3 apples\nQuestion: Tom has 4": (" 3 apples\n", 19, True),
        " 3</s>": (" 3", 3, True),
        "Question:": ("", 9, True),
        " 3\nQuestion": (" 3\nQuestion", 11, False),
        " 3\nQuestion: 4 5</s>": (" 3\n", 12, True),
        " 3</s>\nQuestion:": (" 3", 3, True),
        "": ("", 0, False),
    }
    for drawn, expected in cases.items():
        assert tuple(decoding.read(tokenizer.encode(drawn)).values()) == expected


@pytest.mark.parametrize("gate", [None, "off", "always", "tokens:2"])
def test_a_row_stops_at_the_next_question_and_the_others_go_on(
    tiny_model: Callable[..., PreTrainedModel], gate: str | None
) -> None:
    """One of three writes one; its prompt has one, too. When none is left to go on, nothing more is drawn."""
    tokenizer = make_tokenizer()
    texts = ["4 5 6 7 8 9 10 11 12 13 14", "4\nQuestion: 5 6 7 8 9 10", "4 5</s>"]
    drawn = [tokenizer.encode(text) for text in texts]
    model = tiny_model(vocab_size=len(tokenizer))
    steps: list[int] = []
    present = {6: [0, 1, 2, 0, 1, 2], 3: [0, 1, 2], 2: [0, 1], 1: [0]}  # companions stand behind, rows leave

    def write(module: Any, args: Any, output: Any) -> Any:
        output.logits[:] = 0.0
        for place, row in enumerate(present[len(output.logits)]):
            output.logits[place, :, drawn[row][min(len(steps), len(drawn[row]) - 1)]] = 9.0
        steps.append(len(output.logits))
        return output

    model.register_forward_hook(write)
    generate = model.generate
    if gate is not None:
        generate = partial(get_prefix_reft_model(model, PrefixReftConfig()).generate, gate=gate)
    decoding = CompletionSettings(tokenizer, TEMPLATES["plain"], [int(tokenizer.eos_token_id)], max_new_tokens=16)
    found = complete(["3?", *QUESTIONS[1:3]], None, generate=generate, decoding=decoding, device=CPU)
    assert [tuple(row.values())[:3] for row in found] == [
        (texts[0][:16], 16, False),
        ("4\n", 11, True),
        ("4 5", 4, True),
    ]
    present |= {2: [1, 1], 1: [1]}
    for question, its_gate in (("3?", {}), (QUESTIONS[0], {} if gate is None else {"gate": "kl:inf"})):
        steps.clear()
        (alone,) = complete([question], None, generate=partial(generate, **its_gate), decoding=decoding, device=CPU)
        assert tuple(alone.values())[:3] == ("4\n", 11, True)
        assert len(steps) == 11


def test_padding_with_the_end_token_changes_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    padded_by_end = build_tokenizer()
    padded_by_end.pad_token = padded_by_end.eos_token
    results = [
        ask(QUESTIONS, Scripted(each, RIGHT), CompletionSettings(each, TEMPLATES["chat"], [EOS], 20))
        for each in (tokenizer, padded_by_end)
    ]
    assert results[0] == results[1]
    assert [result["num_tokens"] for result in results[0]] == [4, 5, 4, 4, 4]


def test_prompts_and_settings_reach_generate(tokenizer: PreTrainedTokenizerFast, decoding: CompletionSettings) -> None:
    generate = Scripted(tokenizer, RIGHT)
    ask(QUESTIONS[:3], generate, decoding)
    assert generate.prompts == [f"<bos>{question}\n" for question in QUESTIONS[:3]]
    expected = {"max_new_tokens": 20, "eos_token_id": [EOS], "pad_token_id": 0, "return_dict_in_generate": True}
    expected |= {"use_cache": True, "custom_generate": sample_leaving}
    assert {name: generate.settings[name] for name in expected} == expected
    assert generate.settings.keys() - expected == {"logits_processor"}


@pytest.mark.parametrize("opener", OPENERS.values())
def test_the_opener_is_part_of_the_prompt_and_of_the_completion(
    tokenizer: PreTrainedTokenizerFast, decoding: CompletionSettings, opener: str
) -> None:
    generate = Scripted(tokenizer, {QUESTIONS[0]: " 3.\n#### 3<eos>"})
    (result,) = ask(QUESTIONS[:1], generate, replace(decoding, opener=opener))
    assert generate.prompts == [f"<bos>{QUESTIONS[0]}\n{opener}"]
    assert result == {"completion": f"{opener} 3.\n#### 3", "num_tokens": 8, "finished": True}


def test_sampling_settings_reach_generate_under_the_seed(
    tokenizer: PreTrainedTokenizerFast, decoding: CompletionSettings
) -> None:
    generate = Scripted(tokenizer, RIGHT)
    drawn = []
    for seed in (7, 7, 8):
        sampled = replace(decoding, sampling={"temperature": 0.7, "top_k": 0})
        complete(QUESTIONS[:1], seed, generate=generate, decoding=sampled, device=CPU)
        drawn.append(torch.rand(()).item())
    assert (generate.settings["do_sample"], generate.settings["temperature"], generate.settings["top_k"]) == (
        True,
        0.7,
        0,
    )
    assert drawn[0] == drawn[1] != drawn[2]


def gated(tokenizer: PreTrainedTokenizerFast, inputs: torch.Tensor, texts: Sequence[str]) -> GatedOutput:
    """Three rows: closed at token 2, ended at token 1 before closing, closed from the start."""
    rows = [torch.tensor(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    drawn = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
    nan = float("nan")
    return GatedOutput(
        sequences=torch.cat([inputs, drawn], dim=1),
        kl=torch.tensor([[1.25, 0.5, 2.0], [0.125, 0.25, nan], [3.0, nan, nan]]),
        cumulative_kl=torch.tensor([3.75, 0.375, 3.0]),
        closing_positions=torch.tensor([2, -1, 0]),
    )


GATE_RECORDS = [
    {"kl": [1.25, 0.5, 2.0], "cumulative_kl": 3.75, "closing_position": 2},
    {"kl": [0.125, 0.25], "cumulative_kl": 0.375, "closing_position": None},
    {"kl": [3.0], "cumulative_kl": 3.0, "closing_position": 0},
]


def test_what_the_gate_saw_is_recorded(tokenizer: PreTrainedTokenizerFast, decoding: CompletionSettings) -> None:
    results = ask(
        QUESTIONS[:3], lambda inputs, **_: gated(tokenizer, inputs, ["12+3", "5<eos>", "7-1=6<eos>"]), decoding
    )
    assert [{name: result[name] for name in GATE_RECORDS[0]} for result in results] == GATE_RECORDS
    assert [result["completion"] for result in results] == ["12+3", "5", "7-1=6"]
    assert not any("dead_band" in result for result in results)


def test_a_dead_band_is_recorded_and_off_the_sum(
    tokenizer: PreTrainedTokenizerFast, decoding: CompletionSettings
) -> None:
    def generate(inputs: torch.Tensor, **_: Any) -> GatedOutput:
        output = gated(tokenizer, inputs, ["12+3", "5<eos>", "7-1=6<eos>"])
        output.dead_band = 0.5
        return output

    results = ask(QUESTIONS[:3], generate, decoding)
    assert [result["kl"] for result in results] == [record["kl"] for record in GATE_RECORDS]
    assert [result["cumulative_kl"] for result in results] == [0.75 + 1.5, 0.0, 2.5]
    assert [result["dead_band"] for result in results] == [0.5] * 3


class Server:
    """An engine that writes a fixed text and remembers what it was asked."""

    def complete(self, prompts: Sequence[list[int]], max_tokens: Sequence[int], *_: Any) -> list[Continuation]:
        self.prompts, self.max_tokens = list(prompts), list(max_tokens)
        return [Continuation("=9", 3, finished=True), Continuation("+", 1, finished=False)][: len(prompts)]


def test_an_engine_goes_on_after_each_rows_prefix_and_leaves_finished_rows_alone(
    tokenizer: PreTrainedTokenizerFast, decoding: CompletionSettings
) -> None:
    server = Server()

    def generate(inputs: torch.Tensor, **settings: Any) -> GatedOutput:
        assert settings["until_closed"] is True
        return gated(tokenizer, inputs, ["12+3", "5<eos>", "7-1=6<eos>"])

    results = complete_by_engine(
        QUESTIONS[:3],
        None,
        generate=generate,
        decoding=decoding,
        device=CPU,
        engine=server,  # type: ignore[arg-type]
    )
    assert [tokenizer.decode(prompt) for prompt in server.prompts] == [
        f"<bos>{QUESTIONS[0]}\n12",
        f"<bos>{QUESTIONS[2]}\n",
    ]
    assert server.max_tokens == [18, 20]
    assert [(row["completion"], row["num_tokens"], row["finished"]) for row in results] == [
        ("12=9", 5, True),
        ("5", 2, True),
        ("+", 1, False),
    ]
    assert [{name: result[name] for name in GATE_RECORDS[0]} for result in results] == GATE_RECORDS


@pytest.mark.parametrize(
    ("prefix", "written", "expected"),
    [
        ("12", Continuation("=9\n", 12, finished=True), ("12=9\n", 14, True)),  # a server that leaves stops out
        ("12", Continuation("=9\nQuestion:", 12, finished=True), ("12=9\n", 14, True)),  # and one that does not
        ("12", Continuation("=9\nQuestion: 4 5 6 7", 20, finished=False), ("12=9\n", 14, True)),  # nor stops
        ("12\nQuestion", Continuation(": 5 6", 5, finished=False), ("12\n", 12, True)),  # at the seam
        ("12", Continuation("=9", 3, finished=True), ("12=9", 5, True)),
    ],
)
def test_what_an_engine_writes_ends_at_the_next_question(
    prefix: str, written: Continuation, expected: tuple[str, int, bool]
) -> None:
    tokenizer = make_tokenizer()

    class Writer:
        def complete(self, *arguments: Any) -> list[Continuation]:
            assert arguments[5] == ("Question:",)
            return [written]

    def generate(inputs: torch.Tensor, **_: Any) -> GatedOutput:
        drawn = torch.tensor([tokenizer.encode(prefix + "7")])
        return GatedOutput(torch.cat([inputs, drawn], dim=1), closing_positions=torch.tensor([len(prefix)]))

    decoding = CompletionSettings(tokenizer, TEMPLATES["plain"], [int(tokenizer.eos_token_id)], max_new_tokens=20)
    engine: Any = Writer()
    (row,) = complete_by_engine(["3?"], None, generate=generate, decoding=decoding, device=CPU, engine=engine)
    assert (row["completion"], row["num_tokens"], row["finished"]) == expected


@pytest.mark.parametrize("gate", [None, "always", "tokens:2"])
def test_a_question_whose_logits_are_nan_is_named_and_nothing_is_drawn(
    tiny_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    decoding: CompletionSettings,
    gate: str | None,
) -> None:
    """One row of a batch, from the second token on."""
    model = tiny_model(vocab_size=len(tokenizer))
    spoilt = model.get_output_embeddings().register_forward_hook(
        lambda module, args, output: output.masked_fill(
            (torch.arange(len(output)) % len(QUESTIONS) == 3)[:, None, None] & (model.steps > 1), torch.nan
        )
    )
    model.steps = 0
    model.register_forward_pre_hook(lambda module, args: setattr(model, "steps", model.steps + 1))
    generate = model.generate
    if gate is not None:
        generate = partial(get_prefix_reft_model(model, PrefixReftConfig()).generate, gate=gate)
    with pytest.raises(UserError, match=re.escape(f"those for '{QUESTIONS[3]}' are NaN")):
        complete(QUESTIONS, None, generate=generate, decoding=decoding, device=CPU)
    assert model.steps == 2
    spoilt.remove()
    assert len(complete(QUESTIONS, None, generate=generate, decoding=decoding, device=CPU)) == len(QUESTIONS)


def test_what_a_gate_measured_in_the_engine_is_recorded_as_if_it_were_here(decoding: CompletionSettings) -> None:
    reports: list[dict[str, Any]] = [
        {"kl": [0.25, 2.0], "closing_position": 1, "dead_band": 0.125},
        {"kl": [0.5], "closing_position": -1, "dead_band": 0.0},
        {"kl": [], "closing_position": -1, "dead_band": 0.0},  # a gate that never closes measures nothing
    ]

    class Gated:
        def complete(self, prompts: Sequence[list[int]], *_: Any) -> list[Continuation]:
            return [Continuation("=9", 3, finished=True, report=report) for report in reports]

    engine: Any = Gated()
    rows = complete_in_engine(QUESTIONS[:3], None, decoding=decoding, engine=engine)
    assert [(row.pop("completion"), row.pop("num_tokens"), row.pop("finished")) for row in rows] == [
        ("=9", 3, True)
    ] * 3
    assert rows == [
        {"kl": [0.25, 2.0], "cumulative_kl": 2.0, "dead_band": 0.125, "closing_position": 1},
        {"kl": [0.5], "cumulative_kl": 0.5, "closing_position": None},
        {},
    ]
