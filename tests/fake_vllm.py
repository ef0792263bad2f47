"""What `reft_math.engines.vllm` needs of vLLM, on transformers: whole sequences, no cache, one request after the other.

Requests are answered by what they ask in ``extra_args["reft"]`` alone, as vLLM's worker answers them. `install` puts it
in vLLM's place.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from interventions import PrefixReftModel
from interventions.gates import kl_divergence
from interventions.positions import intervention_mask


class RequestOutputKind(Enum):
    CUMULATIVE, DELTA, FINAL_ONLY = range(3)


@dataclass
class SamplingParams:
    n: int = 1
    max_tokens: int | None = 16
    temperature: float = 1.0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    detokenize: bool = True
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    bad_words: list[str] | None = None
    structured_outputs: Any = None
    skip_reading_prefix_cache: bool | None = None
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    extra_args: dict[str, Any] | None = None

    def clone(self) -> SamplingParams:
        return copy.deepcopy(self)


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: Any
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: Any
    outputs: list[CompletionOutput]
    finished: bool


class TopKTopPSampler:
    def __call__(self, logits: torch.Tensor, generators: Any, k: None, p: None) -> tuple[torch.Tensor, None]:
        p_row = logits[0].softmax(-1)
        return (p_row / torch.empty_like(p_row).exponential_(generator=generators[0])).argmax(keepdim=True), None


class Server:
    """Base and adapters, and every request that came.

    Attributes:
        requests: Prompt, with its ``cache_salt``, and parameters.
        read_again: How many drafts the base had found in the cache.
        die_at, abort_at: The number of the request at which the engine dies, or gives up the request; None for never.
    """

    def __init__(self, base: PreTrainedModel, adapters: dict[str, PrefixReftModel], tokenizer: Any) -> None:
        self.base, self.adapters, self.tokenizer = base, adapters, tokenizer
        self.loaded: list[str] = []
        self.states: dict[str, dict[int, torch.Tensor]] = {}
        self.blocks: set[tuple[Any, ...]] = set()
        self.requests: list[tuple[dict[str, Any], SamplingParams]] = []
        self.die_at: int | None = None
        self.abort_at: int | None = None
        self.read_again = 0
        self.model_config = SimpleNamespace(dtype=base.dtype, max_model_len=64)

    def answer(self, request_id: str, prompt: dict[str, Any], params: SamplingParams) -> RequestOutput:
        self.requests.append((prompt, params))
        if len(self.requests) == self.die_at:
            raise RuntimeError("EngineCore encountered an issue")
        if len(self.requests) == self.abort_at:
            completion = CompletionOutput(0, "", [], None, None, "abort")
            return RequestOutput(request_id, None, prompt["prompt_token_ids"], None, [completion], finished=True)
        asked = (params.extra_args or {}).get("reft")
        text = list(prompt["prompt_token_ids"])
        start, reason, stop = len(text), "length", None
        assert params.max_tokens is not None
        assert start + params.max_tokens <= self.model_config.max_model_len + (asked is not None)
        found = 0 if params.skip_reading_prefix_cache else self._cached(text, prompt.get("cache_salt"))
        generator = None if params.seed is None else torch.Generator().manual_seed(params.seed)
        for _ in range(params.max_tokens):
            logits = self._states(text, asked, found)[-1]
            if params.temperature > 0:
                text.append(int(TopKTopPSampler()(logits[None] / params.temperature, {0: generator}, None, None)[0]))
            else:
                text.append(int(logits.argmax()))
            if text[-1] in params.stop_token_ids and not params.ignore_eos:
                reason, stop = "stop", text[-1]
                break
            ending = next((one for one in params.stop if one in self.tokenizer.decode(text[start:])), None)
            if ending is not None:
                reason, stop = "stop", ending
                break
        written = self.tokenizer.decode(text[start:]) if params.detokenize else ""
        completion = CompletionOutput(0, written, text[start:], None, None, reason, stop)
        return RequestOutput(request_id, None, text[:start], None, [completion], finished=True)

    def _cached(self, text: list[int], salt: str | None) -> int:
        """Returns how many tokens lie in the cache, whole blocks of two but for the last token; puts the text there."""
        blocks = [(salt, *text[:end]) for end in range(2, len(text) + 1, 2)]
        found = sum(1 for end, block in zip(range(2, len(text), 2), blocks, strict=False) if block in self.blocks)
        self.blocks.update(blocks)
        return 2 * found

    @torch.no_grad()
    def _states(self, text: list[int], asked: Any, found: int) -> torch.Tensor:
        """Returns logits; keeps them, in place of the states that they are made of, where they are asked for and not
        among the first ``found`` tokens."""
        ids = torch.tensor([text])
        if asked is None or asked["adapter"] is None:
            logits = self.base(ids).logits[0]
        else:
            place = torch.arange(len(text)) - asked["prompt_length"]
            mask = intervention_mask(place, asked["positions"])[None]
            logits = self.adapters[asked["adapter"]](ids, intervention_mask=mask).logits[0]
        if asked is not None and asked["key"] is not None:
            kept = self.states.setdefault(asked["key"], {})
            kept.update({index: logits[index] for index in range(max(asked["keep_from"], found), len(text))})
        return logits

    def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[Any]:
        """The first rank's answer, and that of one without logits."""
        if method == "reft_load":
            name = args[0]
            self.loaded.append(name)
            return [None if name in self.adapters else f"no {name}"] * 2
        if method == "reft_forget":
            for key in args[0]:
                self.states.pop(key, None)
            return [None, None]
        assert method == "reft_divergences"
        found: list[Any] = []
        for draft, base, first, count, direction in args[0]:
            if not set(range(first, first + count)) <= self.states.get(base, {}).keys():
                self.states.pop(base, None)
                self.read_again += 1
                found.append(None)
                continue
            kept = [self.states.pop(key) for key in (draft, base)]
            mod, plain = (torch.stack([states[first + index] for index in range(count)]) for states in kept)
            found.append(kl_divergence(mod, plain, direction).tolist())
        return [None, found]


class LLM:
    """Requests wait, and one of them is answered in each step: the last that came."""

    server: Server

    def __init__(self, model: str, worker_extension_cls: str, **kwargs: Any) -> None:
        self.model, self.worker, self.settings = model, worker_extension_cls, kwargs
        self.waiting: list[tuple[str, dict[str, Any], SamplingParams]] = []
        self.llm_engine = SimpleNamespace(
            model_config=self.server.model_config,
            add_request=lambda *request: self.waiting.append(request),
            step=lambda: [self.server.answer(*self.waiting.pop())],
            abort_request=self._abort,
        )

    def _abort(self, names: list[str]) -> None:
        self.waiting = [request for request in self.waiting if request[0] not in names]

    def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        return self.server.collective_rpc(method, args)

    def get_tokenizer(self) -> Any:
        return self.server.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        return SamplingParams(temperature=0)

    def generate(self, prompts: Any, params: Any, **kwargs: Any) -> Any:
        return "vLLM's own"


class AsyncLLM:
    server: Server

    def __init__(self) -> None:
        self.model_config = self.server.model_config
        self.renderer = SimpleNamespace(tokenizer=self.server.tokenizer)

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **kwargs: Any
    ) -> AsyncIterator[RequestOutput]:
        whole = self.server.answer(request_id, prompt, sampling_params)
        if sampling_params.output_kind == RequestOutputKind.CUMULATIVE:
            for end in range(1, len(whole.outputs[0].token_ids)):
                completion = dataclasses.replace(
                    whole.outputs[0], token_ids=whole.outputs[0].token_ids[:end], finish_reason=None
                )
                yield dataclasses.replace(whole, outputs=[completion], finished=False)
        yield whole

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        return self.server.collective_rpc(method, args)


def install(server: Server, patch: pytest.MonkeyPatch) -> None:
    """Puts this in vLLM's place, for modules that were not imported before or that were imported with it."""
    LLM.server = AsyncLLM.server = server
    contents: dict[str, dict[str, Any]] = {
        "vllm": {each.__name__: each for each in (LLM, CompletionOutput, RequestOutput, SamplingParams)},
        "vllm.platforms": {"current_platform": SimpleNamespace(is_cpu=lambda: True, import_kernels=lambda: None)},
        "vllm.sampling_params": {"RequestOutputKind": RequestOutputKind},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.sample.ops.topk_topp_sampler": {"TopKTopPSampler": TopKTopPSampler},
        "vllm.v1.engine.async_llm": {"AsyncLLM": AsyncLLM},
    }
    for name, names in contents.items():
        module = ModuleType(name)
        vars(module).update(names)
        patch.setitem(sys.modules, name, module)
