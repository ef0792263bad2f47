"""The hand-off against a server that speaks the protocol, well and badly."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from reft_math.arithmetic.tokenizer import build_tokenizer
from reft_math.decoding import engine as engine_module
from reft_math.decoding.engine import Continuation, Engine
from reft_math.errors import UserError

pytest.importorskip("openai", reason="the engine extra is not installed")

TOKENIZER = build_tokenizer()
PROMPTS = [list(TOKENIZER(text).input_ids) for text in ("12+3=", "7-1=", "40*2=")]


class Server:
    """Answers completions by `reply`, a status and a body for each request in turn; the last one stays."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.replies: list[tuple[int, Any]] = [(200, None)]
        self.models = ["base"]
        self.lists_models = True
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if not outer.lists_models:
                    self._send(500, {"detail": "no cache"})
                    return
                names = [{"id": name, "object": "model", "created": 0, "owned_by": "us"} for name in outer.models]
                self._send(200, {"object": "list", "data": names})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with outer._lock:
                    outer.requests.append(body)
                    outer.keys.append(self.headers.get("authorization"))
                    status, reply = outer.replies.pop(0) if len(outer.replies) > 1 else outer.replies[0]
                self._send(status, answer(body["prompt"]) if reply is None else reply)

            def _send(self, status: int, body: Any) -> None:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def answer(prompt: list[int] | str, reason: str = "stop") -> dict[str, Any]:
    """A completion that says how long the prompt was."""
    choice = {"index": 0, "text": f" {len(prompt)}", "finish_reason": reason, "logprobs": None}
    usage = {"prompt_tokens": len(prompt), "completion_tokens": 2, "total_tokens": len(prompt) + 2}
    return {"id": "x", "object": "text_completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


@pytest.fixture(autouse=True)
def hardly_any_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "MAX_RETRIES", 2)


def ask(engine: Engine, sampling: dict[str, Any] | None = None) -> list[Continuation]:
    return engine.complete(PROMPTS, [10, 20, 30], [2, 5], sampling or {}, seed=100)


def test_token_ids_and_settings_reach_the_server_and_answers_keep_their_order(server: Server) -> None:
    expected = [Continuation(f" {len(prompt)}", 2, finished=True) for prompt in PROMPTS]
    assert ask(Engine(server.url, TOKENIZER)) == expected
    sent = sorted(server.requests, key=lambda body: body["max_tokens"])
    assert [body["prompt"] for body in sent] == PROMPTS
    assert [body["max_tokens"] for body in sent] == [10, 20, 30]
    for body in sent:
        assert (body["model"], body["temperature"], body["stop_token_ids"]) == ("base", 0.0, [2, 5])
        assert "seed" not in body


def test_sampling_settings_and_a_seed_for_each_row_reach_the_server(server: Server) -> None:
    ask(Engine(server.url, TOKENIZER), {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05})
    sent = sorted(server.requests, key=lambda body: body["max_tokens"])
    assert [body["seed"] for body in sent] == [100, 101, 102]
    assert {(body["temperature"], body["top_p"], body["top_k"], body["min_p"]) for body in sent} == {
        (0.7, 0.9, 40, 0.05)
    }


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_refuses_token_ids_gets_the_text_they_stand_for(server: Server, status: int) -> None:
    server.replies = [(status, {"detail": "prompt must be a string."}), (200, None)]
    engine = Engine(server.url, TOKENIZER)
    ask(engine)
    ask(engine)
    assert server.requests[0]["prompt"] == PROMPTS[0]
    texts = [body["prompt"] for body in server.requests[1:]]
    assert len(texts) == 6, "it is asked once whether it takes token ids"
    assert {tuple(TOKENIZER(text).input_ids) for text in texts} == {tuple(prompt) for prompt in PROMPTS}
    assert "stop_token_ids" not in server.requests[1]
    assert json.loads(server.requests[1]["generation_config"]) == {"eos_token_id": [2, 5], "do_sample": False}
    ask(engine, {"temperature": 0.7, "top_k": 0})
    config = json.loads(server.requests[-1]["generation_config"])
    assert config == {"eos_token_id": [2, 5], "do_sample": True, "temperature": 0.7, "top_k": 0}


def test_a_prompt_that_no_text_stands_for_is_not_sent_as_text(server: Server) -> None:
    """A space and a name, which the tokenizer reads as one token with the space in it."""
    unreadable = [PROMPTS[0][0], *TOKENIZER.convert_tokens_to_ids([" ", "Anna"])]
    assert list(TOKENIZER(TOKENIZER.decode(unreadable[1:])).input_ids) != unreadable
    server.replies = [(400, {})]
    with pytest.raises(UserError, match="takes text only, and no text has the tokens"):
        Engine(server.url, TOKENIZER).complete([unreadable], [5], [2], {}, 0)
    assert len(server.requests) == 1


def test_what_goes_wrong_for_a_while_is_tried_again(server: Server) -> None:
    server.replies = [(500, {}), (429, {}), (200, None), (503, {}), (200, None)]
    assert len(ask(Engine(server.url, TOKENIZER))) == 3


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((500, {"error": {"message": "out of memory"}}), "failed after 2 retries .*out of memory.*--resume goes on"),
        ((401, {"error": {"message": "no key"}}), r"refused \(.*no key"),
        ((404, {"detail": "no such model"}), r"refused \(.*no such model"),
        ((200, b"<html>busy</html>"), "answered what is no completion|failed after"),
        ((200, {"choices": []}), "answered what is no completion"),
        ((200, answer([1], reason="content_filter")), "answered what is no completion"),
    ],
)
def test_what_stays_wrong_is_one_clear_line(server: Server, reply: tuple[int, Any], message: str) -> None:
    server.replies = [reply]
    with pytest.raises(UserError, match=message) as caught:
        ask(Engine(server.url, TOKENIZER, model="base"))
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there_is_one_clear_line(server: Server) -> None:
    server.close()
    with pytest.raises(UserError, match=r"engine http://127.0.0.1:\d+/v1 failed after 2 retries \(Connection error"):
        Engine(server.url, TOKENIZER)


def test_a_server_that_does_not_list_its_models_must_be_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "models", None)  # the handler fails on it, and the connection drops
    with pytest.raises(UserError, match="failed after 2 retries"):
        Engine(server.url, TOKENIZER)
    server.lists_models = False
    with pytest.raises(UserError, match=r"does not list its models .*; say with --engine-model which is the base"):
        Engine(server.url, TOKENIZER)
    assert len(ask(Engine(server.url, TOKENIZER, model="base"))) == 3


def test_among_several_models_the_base_must_be_named(server: Server) -> None:
    server.models = ["base", "other"]
    with pytest.raises(UserError, match="serves base, other; say with --engine-model which is the base"):
        Engine(server.url, TOKENIZER)
    assert len(ask(Engine(server.url, TOKENIZER, model="other"))) == 3
    assert {body["model"] for body in server.requests} == {"other"}


def test_the_key_comes_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a secret")
    ask(Engine(server.url, TOKENIZER))
    assert set(server.keys) == {"Bearer a secret"}


def test_nothing_to_write_asks_for_nothing(server: Server) -> None:
    assert Engine(server.url, TOKENIZER).complete([], [], [2], {}, 0) == []
    assert server.requests == []
