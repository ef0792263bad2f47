"""The field ``reft`` of requests to vLLM's server, and the gate's report in its answers.

OpenAI's client sends it as ``extra_body={"reft": {"adapter": "red", "gate": "kl:2,min=1"}}``; without ``gate`` it is
the adapter's own. Each choice of the answer, streamed or not, then has ``reft``: a `GateReport` as JSON.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from uuid import uuid4

from reft_math.engines.vllm.loading import Loaded, gate_of
from reft_math.errors import UserError

ADAPTER, GATE = "reft_adapter", "reft_gate"  # in vLLM's own field for extra arguments, vllm_xargs
_NOT_SERVED = "/v1/responses"
_PATHS = ("/v1/completions", "/v1/chat/completions", _NOT_SERVED)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ReftFields:
    """ASGI middleware: hands the field ``reft`` of a request on to the engine, and puts the report into the answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].endswith(_PATHS):
            return await self.app(scope, receive, send)  # type: ignore[no-any-return]
        body = await _whole_body(receive)
        engine = scope["app"].state.engine_client
        fields: Any = None
        with contextlib.suppress(ValueError):  # vLLM says what is wrong with it
            fields = json.loads(body)
        asked = fields.pop("reft", None) if isinstance(fields, dict) else None
        if isinstance(fields, dict) and asked is not None:
            try:
                if scope["path"].endswith(_NOT_SERVED):
                    raise UserError("reft goes with completions and chats; ask for one of them")
                fields["vllm_xargs"] = _extra(asked, fields, engine.adapters)
            except UserError as error:
                return await _refuse(send, str(error))
            body = json.dumps(fields).encode()
        if asked is None:
            return await self.app(scope, _replayed(body, receive), send)  # type: ignore[no-any-return]
        name = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1") + uuid4().hex
        headers = [(key, value) for key, value in scope["headers"] if key not in (b"x-request-id", b"content-length")]
        headers += [(b"x-request-id", name.encode("latin-1")), (b"content-length", str(len(body)).encode())]
        answer = _Answer(send, name, engine.reports)
        try:
            await self.app({**scope, "headers": headers}, _replayed(body, receive), answer.send)
        finally:
            for key in [key for key in engine.reports if name in key]:
                del engine.reports[key]
        return None


class _Answer:
    """Adds the reports to the choices of an answer on its way out."""

    def __init__(self, send: Send, name: str, reports: dict[str, dict[str, Any]]) -> None:
        self._send, self._name, self._reports = send, name, reports
        self._start: Message | None = None
        self._body = b""
        self._is_stream = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kind = dict(message["headers"]).get(b"content-type", b"")
            self._is_stream = kind.startswith(b"text/event-stream")
            self._start = message
            if self._is_stream:
                await self._send(message)
            return
        self._body += message.get("body", b"")
        more = message.get("more_body", False)
        if self._is_stream:
            *events, self._body = self._body.split(b"\n\n")
            whole = b"".join(self._event(event) + b"\n\n" for event in events) + (b"" if more else self._body)
            await self._send({"type": "http.response.body", "body": whole, "more_body": more})
        elif not more:
            body, start = self._with_reports(self._body), self._start
            assert start is not None
            headers = [item for item in start["headers"] if item[0] != b"content-length"]
            await self._send({**start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
            await self._send({"type": "http.response.body", "body": body})

    def _event(self, event: bytes) -> bytes:
        head, data = event[:6], event[6:]
        return head + self._with_reports(data) if head == b"data: " else event

    def _with_reports(self, body: bytes) -> bytes:
        try:
            answer = json.loads(body)
            ended = [choice for choice in answer["choices"] if choice.get("finish_reason") is not None]
            for choice in ended:
                choice["reft"] = self._report(int(choice["index"]))
            return json.dumps(answer, separators=(",", ":")).encode() if ended else body
        except (ValueError, KeyError, TypeError):
            return body

    def _report(self, index: int) -> dict[str, Any] | None:
        names = (f"cmpl-{self._name}-{index}", f"chatcmpl-{self._name}")
        return next((self._reports[name] for name in names if name in self._reports), None)


def _extra(asked: Any, fields: dict[str, Any], adapters: Mapping[str, Loaded]) -> dict[str, Any]:
    """Returns vLLM's extra arguments with the field's; raises `UserError` for what would fail on the way."""
    known = {"adapter", "gate"}
    if not isinstance(asked, dict) or not set(asked) <= known or not isinstance(asked.get("adapter"), str):
        raise UserError(f"reft must have the fields adapter and, if not the adapter's own, gate; got {asked!r}")
    if not isinstance(fields.get("vllm_xargs") or {}, dict):
        raise UserError(f"vllm_xargs must be an object; got {fields['vllm_xargs']!r}")
    has_logprobs = fields.get("logprobs") is not None and fields["logprobs"] is not False  # 0 asks for some
    if (fields.get("n") or 1) != 1 or has_logprobs or fields.get("use_beam_search"):
        raise UserError("reft goes with one choice a prompt, n=1, without logprobs or beams")
    gate = asked.get("gate")
    if asked["adapter"] not in adapters:  # without their names: a client without the key has come as far as this
        raise UserError(f"reft's adapter must be one that the server has loaded; got {asked['adapter']!r}")
    gate_of(adapters, asked["adapter"], gate)
    own = {ADAPTER: asked["adapter"]} | ({} if gate is None else {GATE: gate})
    return {**(fields.get("vllm_xargs") or {}), **own}


async def _whole_body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body once more, and then what comes: that the client has gone."""
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _refuse(send: Send, why: str) -> None:
    body = json.dumps({"error": {"message": why, "type": "BadRequestError", "param": "reft", "code": 400}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
