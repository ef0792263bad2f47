"""Gated generation with all that stock ``generate`` takes: options, streamers, criteria, stop strings."""

from __future__ import annotations

import string
from functools import partial
from typing import Any, get_args

import pytest
import tokenizers
import torch
from gated_batches import (
    BUDGET,
    ENDLESS,
    GATES,
    PAD,
    PAIRED,
    PROMPTS,
    UNDRAWN,
    WIDTH,
    TinyModel,
    batch,
    ends_of,
    randomised,
    seeded,
    watched,
)
from transformers import (
    CompileConfig,
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    StaticCache,
    TemperatureLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from interventions.generation import Handoff, gated_generate
from reft_math.errors import UserError

OPTIONS: list[dict[str, Any]] = [
    {"do_sample": True, "temperature": 0.6, "top_k": 8},
    {"do_sample": True, "top_p": 0.7, "temperature": 1.5},
    {"do_sample": True, "min_p": 0.05, "top_k": None, "renormalize_logits": True},
    {"do_sample": True, "num_return_sequences": 3},
    {"repetition_penalty": 1.5},
    {"no_repeat_ngram_size": 2},
    {"bad_words_ids": [[4], [30], [51]]},
    {"forced_eos_token_id": 9},
    {"eos_token_id": list(range(20, 40)), "min_new_tokens": 3},
    {"eos_token_id": list(range(20, 40)), "do_sample": True, "num_return_sequences": 2},
    {"eos_token_id": list(range(40, 64)), "pad_token_id": 63},
    {"max_new_tokens": None, "max_length": WIDTH + 4},
    {"prefill_chunk_size": 3},
    {"cache_implementation": "static"},
    {"attention_mask": None},
    {"custom_generate": None, "assistant_model": None, "stop_strings": None, "tokenizer": None},
    {"prefix_allowed_tokens_fn": lambda row, ids: list(range(10 * row, 64))},
    {"stopping_criteria": [lambda ids, scores, **kwargs: ids[:, -1] % 3 == 0], "eos_token_id": UNDRAWN},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options))
def test_options_act_as_in_stock_generate(tiny_model: TinyModel, options: dict[str, Any]) -> None:
    """Threshold 0 has all after the first forward pass drawn by stock sampling, infinity nothing."""
    model = tiny_model()
    reft_model = randomised(model)
    settings = {**batch(), **ENDLESS, **options}
    stock = seeded(model.generate, **settings)
    assert torch.equal(seeded(reft_model.generate, gate="kl:0", **settings), stock)
    always = seeded(reft_model.generate, gate="always", **settings)
    assert torch.equal(seeded(reft_model.generate, gate="kl:inf", **settings), always)
    assert not torch.equal(stock, always)


def test_rows_that_end_where_nothing_pads_go_on_as_in_stock_generate(tiny_model: TinyModel) -> None:
    """A criterion has ended them, and without an end token stock ``generate`` writes on until all rows have ended.

    What is written after the end, the base writes: the gate's work is done.
    """
    model = tiny_model()
    reft_model = randomised(model)
    settings = {**batch(), **ENDLESS, "stopping_criteria": [lambda ids, scores, **kwargs: ids[:, -1] % 3 == 0]}
    stock = model.generate(**settings)
    assert torch.equal(reft_model.generate(gate="kl:0", **settings), stock)


@pytest.mark.parametrize(("gate", "stock"), [("kl:0", "off"), ("kl:inf", "always")])
def test_criteria_see_the_scores_as_in_stock_generate(tiny_model: TinyModel, gate: str, stock: str) -> None:
    reft_model = randomised(tiny_model())
    seen: list[torch.Tensor] = []

    def record(ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(scores[-1].clone())
        return torch.zeros(len(ids), dtype=torch.bool)

    for name in (stock, gate):
        watched(reft_model, name, stopping_criteria=[record], output_scores=True)
    expected, found = seen[:BUDGET], seen[BUDGET:]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("gate", ["tokens:4", "kl:1", "kl:inf"])
def test_a_gate_sees_a_row_up_to_its_end_padded_or_not(tiny_model: TinyModel, gate: str) -> None:
    reft_model = randomised(tiny_model().double())
    last = watched(reft_model, gate).sequences[0, WIDTH + 1]
    criteria = [lambda ids, scores, **kwargs: ids[:, -1] == last]
    padded, unpadded = (
        watched(reft_model, gate, stopping_criteria=criteria, eos_token_id=end) for end in (UNDRAWN, None)
    )
    assert padded.closing_positions[0] == -1
    assert torch.equal(unpadded.closing_positions, padded.closing_positions)
    torch.testing.assert_close(unpadded.cumulative_kl, padded.cumulative_kl)
    torch.testing.assert_close(unpadded.kl, padded.kl, equal_nan=True)


def test_processors_act_on_what_is_drawn_not_on_what_is_measured(tiny_model: TinyModel) -> None:
    reft_model = randomised(tiny_model().double())
    plain = watched(reft_model, "kl:1")
    sharper = watched(reft_model, "kl:1", logits_processor=LogitsProcessorList([TemperatureLogitsWarper(0.5)]))
    assert torch.equal(sharper.sequences, plain.sequences)
    assert torch.equal(sharper.kl.nan_to_num(), plain.kl.nan_to_num())
    for options in ({"suppress_tokens": plain.sequences[:, WIDTH].tolist()}, {"repetition_penalty": 3.0}):
        changed = watched(reft_model, "kl:1", **options)
        assert (changed.sequences != plain.sequences).any(dim=1).all()
        assert torch.equal(changed.kl[:, 0], plain.kl[:, 0])


def test_an_end_token_is_suppressed_until_the_shortest_length(tiny_model: TinyModel) -> None:
    reft_model = randomised(tiny_model())
    ends = ends_of(reft_model.generate(**batch(), gate="kl:1", **ENDLESS), (0, 0), (1, 1), (2, 2))
    settings = {"gate": "kl:1", "max_new_tokens": BUDGET, "eos_token_id": ends}
    shorter = reft_model.generate(**batch(), **settings)
    found = reft_model.generate(**batch(), min_new_tokens=5, **settings)
    assert shorter.shape[1] < WIDTH + 5
    assert not torch.isin(found[:, WIDTH : WIDTH + 5], torch.tensor([PAD, *ends])).any()


@pytest.mark.parametrize("gate", PAIRED)
def test_several_samples_of_a_prompt_stand_together(tiny_model: TinyModel, gate: str) -> None:
    reft_model = randomised(tiny_model().double())
    torch.manual_seed(0)
    output = watched(reft_model, gate, do_sample=True, num_return_sequences=2, top_k=None)
    inputs = batch()["input_ids"].repeat_interleave(2, dim=0)
    assert torch.equal(output.sequences[:, :WIDTH], inputs)
    assert len({tuple(row) for row in output.sequences.tolist()}) == 6
    assert output.closing_positions.shape == (6,)
    first = output.kl[:, 0].view(3, 2)
    torch.testing.assert_close(first[:, 0], first[:, 1])
    assert len(first[:, 0].unique()) == 3


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("handoff", get_args(Handoff))
def test_rows_are_padded_where_any_of_several_tokens_ended_them(
    tiny_model: TinyModel, gate: str, handoff: Handoff
) -> None:
    reft_model = randomised(tiny_model())
    endless = reft_model.generate(**batch(), gate=gate, handoff=handoff, **ENDLESS)
    ends = ends_of(endless, (0, 1), (1, 7))
    expected = endless[:, WIDTH:].tolist()
    for row in expected:
        end = next((index for index, token in enumerate(row) if token in ends), BUDGET)
        row[end + 1 :] = [PAD] * len(row[end + 1 :])
    longest = max(sum(token != PAD for token in row) for row in expected)
    found = reft_model.generate(**batch(), gate=gate, handoff=handoff, **{**ENDLESS, "eos_token_id": ends})
    assert found[:, WIDTH:].tolist() == [row[:longest] for row in expected]


@pytest.mark.parametrize("gate", ["tokens:4", "kl:0.5", "kl:inf"])
def test_padding_with_the_end_token_ends_no_row(tiny_model: TinyModel, gate: str) -> None:
    reft_model = randomised(tiny_model())
    end = ends_of(reft_model.generate(**batch(), gate=gate, **ENDLESS), (1, 5))[0]
    settings = {"gate": gate, "max_new_tokens": BUDGET, "eos_token_id": end}
    expected = reft_model.generate(**batch(), **settings)[:, WIDTH:]
    assert (expected == PAD).any()
    found = reft_model.generate(**batch(pad=end), pad_token_id=end, **settings)[:, WIDTH:]
    assert torch.equal(found, torch.where(expected == PAD, end, expected))


@pytest.mark.parametrize("gate", GATES)
def test_a_padding_token_within_a_prompt_is_attended_to(tiny_model: TinyModel, gate: str) -> None:
    reft_model = randomised(tiny_model().double(), intervention="red", site="attn_v")
    prompt = [5, PAD, 21, 7]
    alone = reft_model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, 4), gate=gate, **ENDLESS)
    found = reft_model.generate(**batch([*PROMPTS, prompt]), gate=gate, **ENDLESS)
    without = reft_model.generate(torch.tensor([[5, 21, 7]]), gate=gate, **ENDLESS)
    assert torch.equal(found[3, WIDTH:], alone[0, 4:])
    assert not torch.equal(without[0, 3:], alone[0, 4:])


def test_settings_come_from_a_generation_config_and_leave_it_as_it_was(tiny_model: TinyModel) -> None:
    model = tiny_model()
    reft_model = randomised(model)
    ends = ends_of(reft_model.generate(**batch(), gate="kl:0.5", **ENDLESS), (0, 1), (1, 7))
    expected = reft_model.generate(**batch(), gate="kl:0.5", max_new_tokens=BUDGET, eos_token_id=ends)
    config = GenerationConfig(max_new_tokens=BUDGET, eos_token_id=ends, pad_token_id=PAD)
    before = config.to_dict(), model.generation_config.to_dict()
    assert torch.equal(reft_model.generate(**batch(), gate="kl:0.5", generation_config=config), expected)
    assert (config.to_dict(), model.generation_config.to_dict()) == before
    model.generation_config.eos_token_id = ends
    short = GenerationConfig(max_new_tokens=BUDGET)
    assert torch.equal(reft_model.generate(**batch(), gate="kl:0.5", generation_config=short), expected)


@pytest.mark.parametrize("handoff", get_args(Handoff))
@pytest.mark.parametrize("gate", PAIRED)
def test_a_static_cache_gives_what_a_dynamic_one_gives(tiny_model: TinyModel, gate: str, handoff: Handoff) -> None:
    reft_model = randomised(tiny_model().double())
    dynamic = watched(reft_model, gate, handoff=handoff)
    ends = ends_of(dynamic.sequences, *((row, 1) for row in range(3)))
    for prompts, ending in ((PROMPTS, None), (PROMPTS[:2], None), (PROMPTS, ends)):
        expected, found = (
            watched(reft_model, gate, prompts, handoff=handoff, eos_token_id=ending, cache_implementation=kind)
            for kind in (None, "static")
        )
        assert torch.equal(found.sequences, expected.sequences)
        assert torch.equal(found.closing_positions, expected.closing_positions)
        assert isinstance(found.past_key_values, StaticCache)
        assert len(found.past_key_values.layers[0].keys) == len(prompts)


@pytest.mark.parametrize("gate", GATES)
def test_code_compiled_for_the_base_leaves_no_intervention_out(tiny_model: TinyModel, gate: str) -> None:
    """As on a GPU, where transformers compiles a static cache's steps."""
    model = tiny_model().requires_grad_(False)  # frozen later, it would be compiled anew
    compiling = CompileConfig(backend="eager", mode=None)
    compiling._compile_all_devices = True
    static = {**ENDLESS, "cache_implementation": "static", "compile_config": compiling}
    model.generate(**batch(), **static)
    reft_model = randomised(model, intervention="red", site="ffn_up")
    expected = reft_model.generate(**batch(), gate=gate, **ENDLESS)
    assert torch.equal(reft_model.generate(**batch(), gate=gate, **static), expected)


def test_a_cache_of_ones_own_is_filled(tiny_model: TinyModel) -> None:
    model = tiny_model()
    reft_model = randomised(model)
    cache = DynamicCache(config=model.config)
    found = reft_model.generate(**batch(), gate="kl:0.5", past_key_values=cache, **ENDLESS)
    assert torch.equal(found, reft_model.generate(**batch(), gate="kl:0.5", **ENDLESS))
    assert cache.layers[0].keys.shape[::2] == (3, WIDTH + BUDGET - 1)
    with pytest.raises(UserError, match="starts from the prompt; leave past_key_values out"):
        reft_model.generate(**batch(), gate="kl:0.5", past_key_values=cache, **ENDLESS)


def test_prompts_as_embeddings_are_an_error(tiny_model: TinyModel) -> None:
    model = tiny_model()
    prompt = batch()
    embeddings = model.get_input_embeddings()(prompt.pop("input_ids"))
    loop: dict[str, Any] = {"custom_generate": gated_generate, "interventions": randomised(model), "gate": "kl:0.5"}
    with pytest.raises(UserError, match="needs prompts as tokens; got inputs_embeds"):
        model.generate(inputs_embeds=embeddings, **prompt, **loop, **ENDLESS)


class Recorder(BaseStreamer):
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        self.heard.append(value.tolist())

    def end(self) -> None:
        self.heard.append("end")


@pytest.mark.parametrize("gate", GATES)
def test_a_streamer_hears_prompts_then_every_token_then_the_end(tiny_model: TinyModel, gate: str) -> None:
    model = tiny_model()
    reft_model = randomised(model)
    endless = reft_model.generate(**batch(), gate=gate, **ENDLESS)
    for ends in (None, ends_of(endless, (0, 1), (1, 1), (2, 1))):
        settings = {**ENDLESS, "eos_token_id": ends}
        direct, routed = Recorder(), Recorder()
        sequences = reft_model.generate(**batch(), gate=gate, streamer=direct, **settings)
        loop = partial(gated_generate, streamer=routed)
        model.generate(**batch(), custom_generate=loop, interventions=reft_model, gate=gate, **settings)
        expected = [batch()["input_ids"].tolist(), *sequences[:, WIDTH:].T.tolist(), "end"]
        assert direct.heard == expected
        assert routed.heard == expected
        if gate in ("off", "kl:0"):
            stock = Recorder()
            model.generate(**batch(), streamer=stock, **settings)
            assert stock.heard == expected


@pytest.mark.parametrize("gate", GATES)
def test_a_dictionary_has_scores_and_logits_of_every_token(tiny_model: TinyModel, gate: str) -> None:
    model = tiny_model()
    reft_model = randomised(model)
    ends = ends_of(reft_model.generate(**batch(), gate=gate, **ENDLESS), (0, 2))
    settings: dict[str, Any] = {**ENDLESS, "eos_token_id": ends, "do_sample": True, "top_k": 5}
    asked = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    found = seeded(reft_model.generate, **batch(), gate=gate, **settings, **asked)
    assert torch.equal(found.sequences, seeded(reft_model.generate, **batch(), gate=gate, **settings))
    steps = found.sequences.shape[1] - WIDTH
    for per_step in (found.scores, found.logits):
        assert [(len(step), step.shape[1], step.dtype) for step in per_step] == [(3, 64, torch.float32)] * steps
    for row, tokens in enumerate(found.sequences[:, WIDTH:].tolist()):
        for step, token in enumerate(tokens):
            if token != PAD:
                assert found.scores[step][row].isfinite().sum() == 5
                assert found.scores[step][row, token] == found.logits[step][row, token]
    if gate in ("off", "kl:0"):
        stock = seeded(model.generate, **batch(), **settings, **asked)
        drawn = found.sequences[:, WIDTH:] != PAD
        for name in ("scores", "logits"):
            ours, theirs = (torch.stack(output[name], dim=1)[drawn] for output in (found, stock))
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    unasked = watched(reft_model, gate)
    assert unasked.scores is None
    assert unasked.logits is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_scores_and_logits_are_float32_whatever_the_model_is_in(tiny_model: TinyModel, dtype: torch.dtype) -> None:
    """As stock ``generate`` has them: what is drawn must not depend on who draws it."""
    asked = {"output_scores": True, "output_logits": True}
    output = watched(randomised(tiny_model().to(dtype)), "kl:inf", **asked)
    assert {step.dtype for step in (*output.scores, *output.logits)} == {torch.float32}


@pytest.mark.parametrize("output_scores", [False, True])
def test_stopping_criteria_see_the_scores_that_stock_generate_shows_them(
    tiny_model: TinyModel, output_scores: bool
) -> None:
    model = tiny_model()
    seen: list[list[int]] = []

    def never(ids: torch.Tensor, scores: tuple[torch.Tensor, ...] | None, **kwargs: Any) -> torch.Tensor:
        seen[-1].append(len(scores or ()))
        return torch.zeros(len(ids), dtype=torch.bool)

    options = {"stopping_criteria": [never], "return_dict_in_generate": True, "output_scores": output_scores}
    for generate in (model.generate, partial(randomised(model).generate, gate="kl:inf")):
        seen.append([])
        generate(**batch(), **options, **ENDLESS)
    assert seen[0] == seen[1]
    assert (BUDGET in seen[0]) is output_scores


# --- stop strings ------------------------------------------------------------------------------------------------


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A character a token, 64 of them. (Stop strings need one that knows all letters, not the embedded one.)"""
    vocabulary = {char: index for index, char in enumerate("_" + string.ascii_letters + string.digits + ".")}
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges=[]))
    model.decoder = tokenizers.decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="_")


def cut(sequences: torch.Tensor, stop: str, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Completions up to and with the stop string."""
    texts = tokenizer.batch_decode(sequences[:, WIDTH:])
    return [text[: text.find(stop) + len(stop)] if stop in text else text for text in texts]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("place", [1, 6])
def test_stop_strings_end_rows_while_a_gate_is_open_and_after(
    tiny_model: TinyModel, tokenizer: PreTrainedTokenizerFast, gate: str, place: int
) -> None:
    model = tiny_model()
    reft_model = randomised(model)
    settings = {**ENDLESS, "eos_token_id": UNDRAWN}
    endless = reft_model.generate(**batch(), gate=gate, **settings)
    stop = tokenizer.decode(endless[0, WIDTH + place : WIDTH + place + 2])
    found = reft_model.generate(**batch(), gate=gate, stop_strings=[stop, "??"], tokenizer=tokenizer, **settings)
    texts = [text.rstrip("_") for text in tokenizer.batch_decode(found[:, WIDTH:])]
    assert texts == cut(endless, stop, tokenizer)
    assert texts[0].endswith(stop)
    if gate in ("off", "kl:0"):
        stock = model.generate(**batch(), stop_strings=[stop], tokenizer=tokenizer, **settings)
        assert torch.equal(found, stock)


@pytest.mark.parametrize(("gate", "stock"), [("kl:0", "off"), ("kl:inf", "always")])
@pytest.mark.parametrize("place", ["call", "own", "given", "own beside given"])
def test_stop_strings_are_found_where_stock_generate_finds_them(
    tiny_model: TinyModel, tokenizer: PreTrainedTokenizerFast, gate: str, stock: str, place: str
) -> None:
    """In the call, in the model's own generation config, in a given one, or in its own where a given one has none."""
    model = tiny_model()
    reft_model = randomised(model)
    endless = reft_model.generate(**batch(), gate=stock, **ENDLESS)
    stop = [tokenizer.decode(endless[row, WIDTH + 2 : WIDTH + 4]) for row in range(3)]
    model.generation_config.update(max_new_tokens=BUDGET, eos_token_id=UNDRAWN)
    options: dict[str, Any] = {"tokenizer": tokenizer}
    if place == "call":
        options["stop_strings"] = stop
    if "given" in place:
        options["generation_config"] = GenerationConfig(stop_strings=stop if place == "given" else None)
    if "own" in place:
        model.generation_config.stop_strings = stop
    expected = reft_model.generate(**batch(), gate=stock, **options)
    assert expected.shape[1] <= WIDTH + 4
    assert torch.equal(reft_model.generate(**batch(), gate=gate, **options), expected)


def test_stop_strings_stand_beside_other_criteria(tiny_model: TinyModel, tokenizer: PreTrainedTokenizerFast) -> None:
    reft_model = randomised(tiny_model())
    settings: dict[str, Any] = {**ENDLESS, "eos_token_id": UNDRAWN, "gate": "kl:1"}
    endless = reft_model.generate(**batch(), **settings)
    stop = tokenizer.decode(endless[0, WIDTH + 1 : WIDTH + 3])
    criteria = [lambda ids, scores, **kwargs: (ids[:, 0] == PAD) & (ids.shape[1] == WIDTH + 6)]
    found = reft_model.generate(
        **batch(), **settings, stop_strings=stop, tokenizer=tokenizer, stopping_criteria=criteria
    )
    assert (found[:, WIDTH:] != PAD).sum(dim=1).tolist() == [3, 6, 6]


@pytest.mark.parametrize(("gate", "stock"), [("kl:0", "off"), ("kl:inf", "always")])
def test_none_in_the_call_puts_the_models_own_stop_strings_aside(tiny_model: TinyModel, gate: str, stock: str) -> None:
    model = tiny_model()
    reft_model = randomised(model)
    model.generation_config.stop_strings = list(string.ascii_letters)
    expected = reft_model.generate(**batch(), gate=stock, stop_strings=None, **ENDLESS)
    assert torch.equal(reft_model.generate(**batch(), gate=gate, stop_strings=None, **ENDLESS), expected)
