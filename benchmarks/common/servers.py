"""Servers of other engines, for as long as they are measured: vLLM's and llama.cpp's, on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reft_math.errors import UserError

NAME = "base"  # of the model, on vLLM; llama.cpp serves one and takes any name
LENGTH = 256  # tokens of a prompt and its answer
START_S = 600.0
STOP_S = 30.0


def vllm_command(python: str, folder: Path, adapters: Mapping[str, Path] | None = None) -> list[str]:
    """Returns vLLM's server with a folder's weights in float32, or ours with adapters under gates. (``vllm serve`` is
    the same with its own defaults; the CPU build's looks for the version of a package that is not there.)"""
    module = "vllm.entrypoints.openai.api_server" if adapters is None else "reft_math.engines.vllm.served"
    line = f"-m {module} --model {folder} --served-model-name {NAME} --dtype float32"
    line += f" --max-model-len {LENGTH} --enforce-eager --distributed-executor-backend uni"
    return [python, *line.split(), *(f"--reft={name}={source}" for name, source in (adapters or {}).items())]


def llama_command(server: str, file: Path, parallel: int, control_vector: Path | None = None) -> list[str]:
    """Returns ``llama-server`` for so many requests at once, with a cache in float32; its own default is float16."""
    line = f"-m {file} --parallel {parallel} --ctx-size {parallel * LENGTH} --flash-attn off"
    line += " --cache-type-k f32 --cache-type-v f32"
    vector = [] if control_vector is None else ["--control-vector", str(control_vector)]
    return [server, *line.split(), *vector]


@contextmanager
def serving(command: Sequence[str], log: Path) -> Iterator[str]:
    """Starts a server and yields its address (``http://127.0.0.1:PORT``) once it lists its model; ends it after.

    Args:
        command: Program and arguments, without host and port.
        log: File for what it prints.

    Raises:
        UserError: It ended, or listed no model within `START_S` seconds.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # ours, not its own
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # with all that it starts
        )
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # to end the server first
    try:
        deadline = time.monotonic() + START_S
        while not _is_up(address):
            if process.poll() is not None or time.monotonic() > deadline:
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise UserError(f"{command[0]} must serve its model within {START_S:g} s; see {log}: {' '.join(last)}")
            time.sleep(1.0)
        yield address
    finally:
        _end(process)
        signal.signal(signal.SIGTERM, before)


def post(address: str, body: dict[str, Any]) -> Any:
    """Returns the answer to a completions request."""
    data = json.dumps({"model": NAME, **body}).encode()
    request = urllib.request.Request(f"{address}/v1/completions", data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=START_S) as answer:
        return json.load(answer)


def _is_up(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/v1/models", timeout=10.0) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    for way, seconds in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, way)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
