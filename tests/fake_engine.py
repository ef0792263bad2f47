"""A completions server on loopback that behaves or misbehaves as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What one request gets.

    Attributes:
        status, body, headers: The response; a body of None is a completion, one of bytes goes as it is.
        way: ``answer``; ``hang`` says nothing until the server is closed; ``drop`` ends in the middle of the body.
    """

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    way: str = "answer"


GOOD, HANG, DROP = Reply(), Reply(way="hang"), Reply(way="drop")


class FakeEngine:
    """Completions get `replies` in turn; the last one stays. `requests` and `keys` are what came with each.

    Attributes:
        url: What ``--engine`` takes.
        models: Their list, or the `Reply` to those who ask for it.
        one_token: The reply to those who ask for one token, which are not among the requests.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.replies: list[Reply] = [GOOD]
        self.models: list[str] | Reply = ["base"]
        self.one_token = GOOD
        self._lock, self._closed = threading.Lock(), threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if isinstance(outer.models, Reply):
                    self._send(outer.models, None)
                    return
                names = [{"id": name, "object": "model", "created": 0, "owned_by": "us"} for name in outer.models]
                self._send(GOOD, {"object": "list", "data": names})

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if request["max_tokens"] == 1:
                    self._send(outer.one_token, completion(request["prompt"]))
                    return
                with outer._lock:
                    outer.requests.append(request)
                    outer.keys.append(self.headers.get("authorization"))
                    reply = outer.replies.pop(0) if len(outer.replies) > 1 else outer.replies[0]
                self._send(reply, completion(request["prompt"]))

            def _send(self, reply: Reply, usual: Any) -> None:
                if reply.way == "hang":
                    outer._closed.wait()
                    return
                body = usual if reply.body is None else reply.body
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(reply.status)
                for name, value in {"content-type": "application/json", **reply.headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if reply.way == "drop" else data)
                self.close_connection = reply.way == "drop"

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        self._http.shutdown()
        self._http.server_close()


def completion(prompt: list[int] | str, reason: str = "stop") -> dict[str, Any]:
    """Says how long the prompt was."""
    choice = {"index": 0, "text": f" {len(prompt)}", "finish_reason": reason, "logprobs": None}
    usage = {"prompt_tokens": len(prompt), "completion_tokens": 2, "total_tokens": len(prompt) + 2}
    return {"id": "x", "object": "text_completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
