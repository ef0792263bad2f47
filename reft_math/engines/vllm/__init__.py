"""Adapters and gates inside vLLM: one engine, the base's weights once, an adapter and a gate per request.

    from reft_math.engines.vllm import Reft, ReftLLM

    llm = ReftLLM("Qwen/Qwen2.5-Coder-0.5B-Instruct", {"red": "results/qwen/red/adapter"}, dtype="float32")
    outputs = llm.generate(prompts, params, reft=[Reft("red", "kl:2,min=1"), None, Reft("red", "tokens:10")])

How a gate works there is told by `reft_math.engines.vllm.course`; what must hold of vLLM by
`reft_math.engines.vllm.worker.check_config`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reft_math.engines.vllm.course import GateReport
    from reft_math.engines.vllm.offline import ReftLLM
    from reft_math.engines.vllm.requests import Reft

__all__ = ["GateReport", "Reft", "ReftLLM"]

_HOMES = {"GateReport": "course", "Reft": "requests", "ReftLLM": "offline"}


def __getattr__(name: str) -> Any:  # workers import this package, and have no use for the front end
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
