"""`ReftAsyncLLM`: a gated request's outputs, whole and streamed, and its report."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fake_vllm import RequestOutputKind, SamplingParams, Server
from gated_batches import BUDGET, PROMPTS, watched

from reft_math.errors import UserError


@pytest.fixture
def engine(server: Server, folders: dict[str, Path]) -> Any:
    from reft_math.engines.vllm.asynchronous import ReftAsyncLLM

    engine = ReftAsyncLLM()
    for name, folder in folders.items():
        asyncio.run(engine.load_adapter(name, str(folder)))
    return engine


def outputs(engine: Any, kind: RequestOutputKind, gate: str | None = "kl:0.5", **options: Any) -> list[Any]:
    extra = {} if gate is None else {"reft_adapter": "all", "reft_gate": gate}
    params = SamplingParams(temperature=0, max_tokens=BUDGET, output_kind=kind, extra_args=extra, **options)

    async def collect() -> list[Any]:
        prompt = {"type": "token", "prompt": "…", "prompt_token_ids": PROMPTS[0]}
        return [output async for output in engine.generate(prompt, params, "cmpl-1-0")]

    return asyncio.run(collect())


@pytest.mark.parametrize("gate", ["kl:0", "kl:0.5", "tokens:4", "always"])
def test_the_final_output_is_that_of_decoding_here_and_the_report_waits(engine: Any, server: Server, gate: str) -> None:
    (output,) = outputs(engine, RequestOutputKind.FINAL_ONLY, gate)
    here = watched(server.adapters["all"], gate, PROMPTS[:1])
    assert list(output.outputs[0].token_ids) == here.sequences[0, len(PROMPTS[0]) :].tolist()
    report = engine.reports["cmpl-1-0"]
    assert report["parameters"].startswith("SHA-256")
    if gate != "always":
        assert report["closing_position"] == here.closing_positions[0]


@pytest.mark.parametrize("stop", [[], ["never in it"]])
@pytest.mark.parametrize("gate", ["kl:0", "kl:0.5", "tokens:4", "kl:inf", "always"])
def test_a_streams_parts_make_the_whole(engine: Any, gate: str, stop: list[str]) -> None:
    (whole,) = outputs(engine, RequestOutputKind.FINAL_ONLY, gate)
    parts = outputs(engine, RequestOutputKind.DELTA, gate, stop=stop)
    assert [part.finished for part in parts] == [False] * (len(parts) - 1) + [True]
    assert "".join(part.outputs[0].text for part in parts) == whole.outputs[0].text
    assert [token for part in parts for token in part.outputs[0].token_ids] == list(whole.outputs[0].token_ids)
    assert parts[-1].outputs[0].finish_reason == "length"
    if gate in ("tokens:4", "always") and not stop:
        assert len(parts) > 3  # a draft at once, and token by token what nothing can take back
    growing = outputs(engine, RequestOutputKind.CUMULATIVE, gate)
    assert growing[-1].outputs[0].text == whole.outputs[0].text


def test_a_stop_text_is_never_streamed_not_even_in_part(engine: Any, server: Server) -> None:
    (free,) = outputs(engine, RequestOutputKind.FINAL_ONLY, "tokens:4")
    tokens = list(free.outputs[0].token_ids)
    stop = server.tokenizer.decode(tokens[3:6], skip_special_tokens=True)
    parts = outputs(engine, RequestOutputKind.DELTA, "tokens:4", stop=[stop])
    text = free.outputs[0].text
    assert "".join(part.outputs[0].text for part in parts) == text[: text.index(stop)]
    assert parts[-1].outputs[0].stop_reason == stop


def test_a_request_without_the_field_is_the_engines_own(engine: Any, server: Server) -> None:
    (output,) = outputs(engine, RequestOutputKind.FINAL_ONLY, None)
    assert (
        list(output.outputs[0].token_ids)
        == watched(server.adapters["all"], "off", PROMPTS[:1]).sequences[0, len(PROMPTS[0]) :].tolist()
    )
    assert engine.reports == {}


def test_the_workers_own_argument_is_not_a_clients(engine: Any, server: Server) -> None:
    """It would be done as it is, in every forward pass: a wrong one would end the engine."""
    params = SamplingParams(temperature=0, extra_args={"reft": "x"})

    async def collect() -> list[Any]:
        return [output async for output in engine.generate({"prompt_token_ids": [1]}, params, "cmpl-2-0")]

    with pytest.raises(UserError, match="extra_args has no 'reft'"):
        asyncio.run(collect())
    assert server.requests == []


def test_reports_that_nobody_fetches_do_not_pile_up(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from reft_math.engines.vllm import asynchronous

    monkeypatch.setattr(asynchronous, "REPORTS", 2)
    engine.reports = {"cmpl-x-0": {}, "cmpl-y-0": {}}
    outputs(engine, RequestOutputKind.FINAL_ONLY, "tokens:4")
    assert list(engine.reports) == ["cmpl-y-0", "cmpl-1-0"]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_engine_that_dies_in_the_middle_is_an_error_and_nothing_is_kept(
    engine: Any, server: Server, number: int
) -> None:
    server.die_at = number
    with pytest.raises(RuntimeError, match="EngineCore encountered an issue"):
        outputs(engine, RequestOutputKind.FINAL_ONLY, "kl:0.5")
    assert server.states == {}
    assert engine.reports == {}


def test_an_adapter_that_does_not_fit_is_refused(engine: Any, folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="no blue"):
        asyncio.run(engine.load_adapter("blue", str(folders["all"])))
