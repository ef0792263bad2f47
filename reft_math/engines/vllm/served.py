"""vLLM's OpenAI server with an adapter and a gate per request.

    python -m reft_math.engines.vllm.served --model MODEL --reft red=results/red/adapter --port 8000

It takes vLLM's own options. How a request asks for an adapter: `reft_math.engines.vllm.fields`. A request that does not
ask is an ordinary one.
"""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.usage.usage_lib import UsageContext

from reft_math.engines.vllm.asynchronous import ReftAsyncLLM
from reft_math.engines.vllm.loading import WORKER
from reft_math.errors import UserError

MIDDLEWARE = "reft_math.engines.vllm.fields.ReftFields"


async def serve(args: Any) -> None:
    """Serves until it is interrupted; ``args`` are vLLM's, with ``reft``: adapters as ``NAME=FOLDER``."""
    from vllm.entrypoints.launchers.api_server.entry import build_and_serve
    from vllm.entrypoints.launchers.launcher import setup_server

    for name, allowed in {"worker_extension_cls": ("",), "api_server_count": (None, 1)}.items():
        if getattr(args, name, allowed[0]) not in allowed:
            raise UserError(f"--{name.replace('_', '-')} does not go with adapters; leave it out")
    address, sock = setup_server(args, reuse_port=False)
    args.middleware = [*args.middleware, MIDDLEWARE]
    args.worker_extension_cls = WORKER
    args.enforce_eager = True
    engine_args = AsyncEngineArgs.from_cli_args(args)
    config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    engine = ReftAsyncLLM.from_vllm_config(
        vllm_config=config,
        usage_context=UsageContext.OPENAI_API_SERVER,
        disable_log_stats=engine_args.disable_log_stats,
        enable_log_requests=engine_args.enable_log_requests,
    )
    try:
        for name, source in args.reft:
            await engine.load_adapter(name, source)
        closing = await build_and_serve(engine, address, sock, args)
    finally:
        engine.shutdown(timeout=config.shutdown_timeout)
    try:
        await closing
    finally:
        sock.close()


def _named(text: str) -> tuple[str, str]:
    name, equals, source = text.partition("=")
    if not (name and equals and source):
        raise ArgumentTypeError(f"an adapter is given as NAME=FOLDER; got {text!r}")
    return name, source


def main() -> None:
    import uvloop
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.platforms import current_platform
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    parser = make_arg_parser(FlexibleArgumentParser(description="vLLM's OpenAI server, with adapters under gates."))
    parser.add_argument(
        "--reft", type=_named, action="append", default=[], metavar="NAME=FOLDER", help="Adapter, folder or hub id."
    )
    args = parser.parse_args()
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    if args.generation_config == "auto":  # no penalties of the checkpoint's, unasked
        args.generation_config = "vllm"
    if args.enable_chunked_prefill is None and current_platform.is_cpu():  # see ReftLLM
        args.enable_chunked_prefill = False
    configure_logging_from_args(args)
    validate_parsed_serve_args(args)
    try:
        uvloop.run(serve(args))
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
