"""`ReftLLM` on an engine that answers each request by what it asks: the text of stock decoding under the same gate."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from fake_vllm import SamplingParams, Server
from gated_batches import BUDGET, PROMPTS, watched

from reft_math.errors import UserError

GATES = ["off", "always", "tokens:4", "kl:0", "kl:0.5", "kl:1.2,max=5", "kl:inf", "kl:0.3,base||mod"]
GREEDY = SamplingParams(temperature=0, max_tokens=BUDGET)


@pytest.fixture
def llm(server: Server, folders: dict[str, Path]) -> Any:
    from reft_math.engines.vllm.offline import ReftLLM

    return ReftLLM("base", folders, dtype="float32")


def reft(adapter: str, gate: str | None = None) -> Any:
    from reft_math.engines.vllm.requests import Reft

    return Reft(adapter, gate)


def test_every_gate_and_adapter_in_one_batch_gives_the_text_of_decoding_here(llm: Any, server: Server) -> None:
    asked = [*product(server.adapters, GATES), ("all", "prompt"), (None, None)]
    jobs = [(prompt, name, gate) for prompt in PROMPTS for name, gate in asked]
    outputs = llm.generate(
        [prompt for prompt, *_ in jobs],
        GREEDY,
        reft=[None if name is None else reft(name, gate) for _, name, gate in jobs],
        use_tqdm=False,
    )
    assert server.states == {}
    assert server.read_again > 0  # drafts alike of several requests
    for (prompt, name, gate), output in zip(jobs, outputs, strict=True):
        model = server.adapters[name or "all"]
        here = watched(model, gate or "off", [prompt])
        completion = output.outputs[0]
        assert list(completion.token_ids) == here.sequences[0, len(prompt) :].tolist(), (name, gate)
        assert completion.text == server.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        if gate in (None, "off"):
            assert output.reft is None
        elif gate not in ("always", "prompt"):
            seen = here.kl[0]
            assert output.reft.closing_position == here.closing_positions[0]
            assert output.reft.kl == pytest.approx(seen[~seen.isnan()].tolist(), abs=1e-5)


def test_a_request_without_a_gate_of_its_own_has_the_adapters(llm: Any, server: Server, folders: Any) -> None:
    (output,) = llm.generate([PROMPTS[0]], GREEDY, reft=reft("all"), use_tqdm=False)
    here = server.adapters["all"].generate(**{"inputs": _ids(PROMPTS[0])}, max_new_tokens=BUDGET, eos_token_id=None)
    assert list(output.outputs[0].token_ids) == here[0, len(PROMPTS[0]) :].tolist()


def _ids(prompt: list[int]) -> Any:
    import torch

    return torch.tensor([prompt])


def test_what_an_adapter_has_changed_is_cached_for_its_own_requests_only(llm: Any, server: Server) -> None:
    prompt = {"prompt_token_ids": PROMPTS[0], "cache_salt": "mine"}
    for name in server.adapters:
        llm.generate([prompt], GREEDY, reft=reft(name, "tokens:4"), use_tqdm=False)
    edited = [one["cache_salt"] for one, params in server.requests if _adapter(params) is not None]
    plain = [one["cache_salt"] for one, params in server.requests if _adapter(params) is None]
    assert len(set(edited)) == 3
    assert all(salt.endswith("/mine") for salt in edited)
    assert plain == ["mine"] * 6  # verifications and rests find the base's blocks
    behind = [salt for salt in edited if f"/{len(PROMPTS[0])}/" in salt]
    assert len(behind) == 2  # what positions behind a prompt edit depends on where it ends


def _adapter(params: SamplingParams) -> str | None:
    asked = (params.extra_args or {}).get("reft")
    return None if asked is None else asked["adapter"]


def test_stages_draw_from_seeds_of_their_own(llm: Any, server: Server) -> None:
    llm.generate([PROMPTS[0]], SamplingParams(max_tokens=BUDGET, seed=5), reft=reft("all", "tokens:4"), use_tqdm=False)
    draft, verification, rest = (params for _, params in server.requests)
    assert draft.seed == 5
    assert rest.seed not in (5, None)
    assert (verification.temperature, verification.seed, verification.max_tokens) == (0, None, 1)


def test_a_draft_that_the_base_finds_in_its_cache_is_read_once_more_without_it(llm: Any, server: Server) -> None:
    """What lies there was computed for another request: no state of it was kept."""
    for times in range(2):
        llm.generate([PROMPTS[0]], GREEDY, reft=reft("all", "tokens:4"), use_tqdm=False)
        assert server.read_again == times
    skipped = [params.skip_reading_prefix_cache for _, params in server.requests if params.max_tokens == 1]
    assert skipped == [False, False, True]


def test_a_stop_text_over_the_seam_of_two_stages_ends_the_text(llm: Any, server: Server) -> None:
    (free,) = llm.generate([PROMPTS[0]], GREEDY, reft=reft("all", "tokens:4"), use_tqdm=False)
    tokens = list(free.outputs[0].token_ids)
    stop = server.tokenizer.decode(tokens[3:5], skip_special_tokens=True)
    assert len(stop) > 1
    params = SamplingParams(temperature=0, max_tokens=BUDGET, stop=[stop])
    (ended,) = llm.generate([PROMPTS[0]], params, reft=reft("all", "tokens:4"), use_tqdm=False)
    completion = ended.outputs[0]
    text = free.outputs[0].text
    assert completion.text == text[: text.index(stop)]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)
    assert list(completion.token_ids) == tokens[:5]


def test_an_end_token_ends_a_request_in_every_stage(llm: Any, server: Server) -> None:
    (free,) = llm.generate([PROMPTS[0]], GREEDY, reft=reft("all", "tokens:4"), use_tqdm=False)
    tokens = list(free.outputs[0].token_ids)
    for end in dict.fromkeys(tokens):
        params = SamplingParams(temperature=0, max_tokens=BUDGET, stop_token_ids=[end])
        (ended,) = llm.generate([PROMPTS[0]], params, reft=reft("all", "tokens:4"), use_tqdm=False)
        place = tokens.index(end)
        assert list(ended.outputs[0].token_ids) == tokens[: place + 1]
        assert ended.outputs[0].finish_reason == "stop"
        assert ended.reft.closing_position == (-1 if place < 4 else 4)


@pytest.mark.parametrize(
    ("request_", "params", "why"),
    [
        (("blue", "kl:1"), GREEDY, "adapter must be a loaded one (all, solution, generated); got 'blue'"),
        (("all", "kl"), GREEDY, "a gate is 'off', 'always'"),
        (("solution", "prompt"), GREEDY, "gate 'prompt' is for adapters that act on the prompt"),
        (("all", "kl:1"), SamplingParams(n=2), "does not go with n=2"),
        (("all", "always"), SamplingParams(n=2), "does not go with n=2"),
        (("all", "kl:1"), SamplingParams(logprobs=1), "does not go with logprobs=1"),
        (("all", "always"), SamplingParams(logprobs=0), "does not go with logprobs=0"),
        (("all", "kl:1"), SamplingParams(presence_penalty=0.5), "does not go with presence_penalty=0.5"),
        (("all", "kl:1"), SamplingParams(extra_args={"reft": "x"}), "extra_args has no 'reft'"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_begins(
    llm: Any, server: Server, request_: tuple[str, str], params: SamplingParams, why: str
) -> None:
    with pytest.raises(UserError) as refused:
        llm.generate([PROMPTS[0]] * 2, params, reft=[None, reft(*request_)], use_tqdm=False)
    assert why in str(refused.value)
    assert server.requests == []


def test_a_prompt_without_room_is_refused(llm: Any, server: Server) -> None:
    with pytest.raises(UserError, match="a prompt must be shorter than the engine's 64 tokens; got 64"):
        llm.generate([[1] * 64], GREEDY, reft=reft("all", "kl:1"), use_tqdm=False)


def test_an_answer_ends_where_the_engine_has_no_more_room(llm: Any, server: Server) -> None:
    (output,) = llm.generate([[1] * 60], GREEDY, reft=reft("all", "tokens:2"), use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 4
    assert output.outputs[0].finish_reason == "length"


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_engine_that_dies_leaves_nothing_behind(llm: Any, server: Server, number: int) -> None:
    server.die_at = number
    with pytest.raises(RuntimeError, match="EngineCore encountered an issue"):
        llm.generate(PROMPTS, GREEDY, reft=reft("all", "kl:0.5"), use_tqdm=False)
    assert llm.waiting == []
    assert server.states == {}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_request_that_the_engine_gives_up_ends_with_what_is_certain(llm: Any, server: Server, number: int) -> None:
    (whole,) = llm.generate([PROMPTS[0]], GREEDY, reft=reft("all", "tokens:4"), use_tqdm=False)
    server.abort_at = len(server.requests) + number
    server.blocks.clear()
    (output,) = llm.generate([PROMPTS[0]], GREEDY, reft=reft("all", "tokens:4"), use_tqdm=False)
    assert output.outputs[0].finish_reason == "abort"
    assert server.states == {}
    assert list(output.outputs[0].token_ids) == list(whole.outputs[0].token_ids)[: 4 if number == 3 else 0]


def test_prompts_of_other_kinds_are_refused_and_an_ordinary_one_keeps_its_salt(llm: Any, server: Server) -> None:
    with pytest.raises(UserError, match="it also has multi_modal_data"):
        llm.generate([{"prompt_token_ids": [1], "multi_modal_data": {}}], GREEDY, reft=[None], use_tqdm=False)
    llm.generate([{"prompt_token_ids": [1], "cache_salt": "mine"}], GREEDY, reft=[None], use_tqdm=False)
    assert server.requests[-1][0]["cache_salt"] == "mine"


def test_an_adapter_that_does_not_fit_is_refused_with_the_workers_reason(llm: Any, folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="no blue"):
        llm.load_adapter("blue", folders["all"])


def test_without_adapters_it_is_vllms_own(llm: Any) -> None:
    assert llm.generate(PROMPTS, GREEDY) == "vLLM's own"
    assert (llm.worker, llm.settings["enforce_eager"]) == ("reft_math.engines.vllm.worker.ReftWorker", True)


def test_graphs_are_refused(server: Server) -> None:
    from reft_math.engines.vllm.offline import ReftLLM

    with pytest.raises(UserError, match="needs enforce_eager=True"):
        ReftLLM("base", enforce_eager=False)
