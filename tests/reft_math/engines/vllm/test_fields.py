"""The field ``reft`` on its way through a server: into the engine's arguments, and back as the gate's report."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.testclient import TestClient

from reft_math.engines.vllm.fields import ReftFields
from reft_math.engines.vllm.loading import Loaded

REPORT = {"kl": [0.5], "cumulative_kl": 0.5, "closing_position": 1}
COMPLETION = {"model": "base", "prompt": [1, 2], "max_tokens": 3}


@pytest.fixture
def engine() -> Any:
    adapters = {"red": Loaded("red", "0", "all", "kl:2"), "own": Loaded("own", "1", "solution", "tokens:4")}
    return SimpleNamespace(adapters=adapters, reports={})


@pytest.fixture
def client(engine: Any) -> TestClient:
    """A server that answers as vLLM's does, and says what it was asked."""
    app = FastAPI()
    app.state.engine_client = engine

    @app.post("/v1/completions")
    async def complete(request: Request) -> Any:
        body = await request.json()
        name = request.headers.get("x-request-id")
        choices = [{"index": index, "text": "7", "finish_reason": "stop"} for index in range(2)]
        if "vllm_xargs" in body:
            for choice in choices:
                engine.reports[f"cmpl-{name}-{choice['index']}"] = {**REPORT, "closing_position": choice["index"]}
        if not body.get("stream"):
            return JSONResponse({"choices": choices, "asked": body})

        async def events() -> Any:
            open_choice = {"index": 0, "text": "4", "finish_reason": None}
            for choice in (open_choice, *choices):
                yield f"data: {json.dumps({'choices': [choice]})}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    @app.get("/v1/models")
    async def models() -> Any:
        return {"data": []}

    app.add_middleware(ReftFields)
    return TestClient(app)


def test_a_request_without_the_field_passes_unchanged(client: TestClient) -> None:
    answer = client.post("/v1/completions", json=COMPLETION).json()
    assert answer["asked"] == COMPLETION
    assert all("reft" not in choice for choice in answer["choices"])
    assert client.get("/v1/models").json() == {"data": []}


def test_the_field_becomes_extra_arguments_and_each_choice_has_its_report(client: TestClient, engine: Any) -> None:
    body = {**COMPLETION, "vllm_xargs": {"other": 1}, "reft": {"adapter": "red", "gate": "kl:2,min=1"}}
    answer = client.post("/v1/completions", json=body).json()
    assert answer["asked"]["vllm_xargs"] == {"other": 1, "reft_adapter": "red", "reft_gate": "kl:2,min=1"}
    assert "reft" not in answer["asked"]
    assert [choice["reft"]["closing_position"] for choice in answer["choices"]] == [0, 1]
    assert engine.reports == {}


def test_a_streams_last_event_of_each_choice_has_its_report(client: TestClient, engine: Any) -> None:
    body = {**COMPLETION, "stream": True, "reft": {"adapter": "red"}}
    events = client.post("/v1/completions", json=body).text.split("\n\n")
    assert events[3:] == ["data: [DONE]", ""]
    choices = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events[:3]]
    assert "reft" not in choices[0]
    assert [choice["reft"]["closing_position"] for choice in choices[1:]] == [0, 1]
    assert engine.reports == {}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"reft": {"adapter": "blue"}}, "reft's adapter must be one that the server has loaded; got 'blue'"),
        ({"reft": {"adapter": ["red"]}}, "reft must have the fields"),
        ({"reft": "red"}, "reft must have the fields adapter and, if not the adapter's own, gate; got 'red'"),
        ({"reft": {"adapter": "red", "gates": "off"}}, "reft must have the fields"),
        ({"reft": {"adapter": "red", "gate": "kl"}}, "a gate is 'off', 'always'"),
        ({"reft": {"adapter": "red", "gate": 3}}, "a gate is a Gate or its text; got 3"),
        ({"reft": {"adapter": "own", "gate": "prompt"}}, "gate 'prompt' is for adapters that act on the prompt"),
        ({"reft": {"adapter": "red"}, "n": 2}, "reft goes with one choice a prompt"),
        ({"reft": {"adapter": "red"}, "logprobs": 1}, "reft goes with one choice a prompt"),
        ({"reft": {"adapter": "red"}, "logprobs": 0}, "reft goes with one choice a prompt"),
        ({"reft": {"adapter": "red"}, "vllm_xargs": 3}, "vllm_xargs must be an object; got 3"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(client: TestClient, fields: dict[str, Any], why: str) -> None:
    answer = client.post("/v1/completions", json={**COMPLETION, **fields})
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert message.startswith(why)
    assert "\n" not in message


def test_a_way_without_reports_is_refused(client: TestClient) -> None:
    answer = client.post("/v1/responses", json={"input": "1+1", "reft": {"adapter": "red"}})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("reft goes with completions and chats")


def test_a_body_that_is_no_json_is_left_to_the_server(client: TestClient) -> None:
    with pytest.raises(json.JSONDecodeError):  # the test's server reads it, and fails by itself
        client.post("/v1/completions", content=b"{")
