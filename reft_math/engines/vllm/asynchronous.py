"""vLLM's `AsyncLLM`, the engine behind its server, with an adapter and a gate per request."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator
from typing import Any

from vllm import CompletionOutput, RequestOutput, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from reft_math.engines.vllm.course import Draft, Rest, Tokens, Written
from reft_math.engines.vllm.fields import ADAPTER, GATE
from reft_math.engines.vllm.loading import Loaded, first_of, loaded
from reft_math.engines.vllm.requests import (
    GatedRequest,
    Reft,
    check_extra_args,
    gated_output,
    gated_request,
)
from reft_math.errors import UserError

REPORTS = 4096


class ReftAsyncLLM(AsyncLLM):  # type: ignore[misc]
    """`AsyncLLM` whose requests may each have an adapter and a gate, in their ``extra_args``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.adapters: dict[str, Loaded] = {}
        self.reports: dict[str, dict[str, Any]] = {}

    async def load_adapter(self, name: str, source: str) -> None:
        """Loads an adapter from a folder or the hub.

        Raises:
            UserError: It does not fit, or vLLM runs in a way in which adapters do not act.
        """
        problem = first_of(await self.collective_rpc("reft_load", args=(name, source)))
        if problem is not None:
            raise UserError(str(problem))
        self.adapters[name] = loaded(name, source)

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """As `AsyncLLM.generate`; a gated request's report lies in ``reports`` until it is fetched.

        Of reports that nobody fetches the last `REPORTS` are kept.
        """
        extra = sampling_params.extra_args or {}
        request = None
        if ADAPTER in extra:
            request = gated_request(
                list(prompt["prompt_token_ids"]),
                sampling_params,
                Reft(extra[ADAPTER], extra.get(GATE)),
                self.adapters,
                self.model_config.dtype,
                self.model_config.max_model_len,
                self.renderer.tokenizer,
                prompt.get("cache_salt"),
            )
        if request is None:
            check_extra_args(sampling_params)
            async for output in super().generate(prompt, sampling_params, request_id, **kwargs):
                yield output
            return
        stream = Stream(request, request_id)
        try:
            while request.ask is not None:
                async for output in self._answer(request, prompt, request_id, stream, kwargs):
                    yield output
                if (output := stream.next(request.kept)) is not None:
                    yield output
            assert request.report is not None
            self.reports[request_id] = {
                **dataclasses.asdict(request.report),
                "parameters": request.adapter.parameters,
            }
            while len(self.reports) > REPORTS:
                del self.reports[next(iter(self.reports))]
            yield stream.last()
        finally:
            if request.leaves_states:
                await self.collective_rpc("reft_forget", args=(request.state_keys(),))

    async def _answer(
        self, request: GatedRequest, prompt: Any, request_id: str, stream: Stream, kwargs: dict[str, Any]
    ) -> AsyncGenerator[RequestOutput, None]:
        """Runs one stage; yields what is certain on its way: all that is not verified afterwards."""
        changed, params = request.engine_request()
        params.output_kind = RequestOutputKind.FINAL_ONLY
        is_certain = isinstance(request.ask, Rest) or (isinstance(request.ask, Draft) and not request.ask.is_verified)
        is_streamed = is_certain and stream.is_streamed
        if is_streamed:
            params.output_kind = RequestOutputKind.CUMULATIVE
        stage = {name: value for name, value in dict(prompt).items() if name not in ("prompt", "cache_salt")} | changed
        kept = request.kept
        output: RequestOutput | None = None
        async for output in super().generate(stage, params, f"{request_id}-{len(kept)}", **kwargs):
            if is_streamed and not output.finished:
                partial = stream.next([*kept, *output.outputs[0].token_ids])
                if partial is not None:
                    yield partial
        assert output is not None
        divergences = None
        if request.is_read_by(output):
            found = await self.collective_rpc("reft_divergences", args=([request.measured()],))
            divergences = first_of(found)[0]
        request.take(output, divergences)


class Stream:
    """What a request has sent so far.

    Text is held back while it may still turn out to be part of a stop text, or of a character.
    """

    def __init__(self, request: GatedRequest, request_id: str) -> None:
        self.request, self.request_id = request, request_id
        self.kind = request.params.output_kind
        self.is_streamed = self.kind != RequestOutputKind.FINAL_ONLY
        self.tokens = self.characters = 0
        stops = [] if request.params.include_stop_str_in_output else request.params.stop or []
        self.held_back = max((len(stop) - 1 for stop in stops), default=0)

    def next(self, token_ids: Tokens) -> RequestOutput | None:
        """Returns the output for the tokens so far; None if it has nothing new."""
        if not self.is_streamed or self.request.ask is None or len(token_ids) <= self.tokens:
            return None
        text, done = self.request.ended_text(Written(token_ids, None))
        text = text[: len(text) - self.held_back] if self.held_back else text
        if done.stop_reason is not None or text.endswith("\ufffd") or len(text) <= self.characters:
            return None
        return self._output(text, token_ids, None)

    def last(self) -> RequestOutput:
        """Returns the finished output."""
        whole = gated_output(self.request_id, self.request)
        completion = whole.outputs[0]
        return self._output(completion.text, list(completion.token_ids), whole) if self.is_streamed else whole

    def _output(self, text: str, token_ids: Tokens, whole: RequestOutput | None) -> RequestOutput:
        output = whole or RequestOutput(self.request_id, None, self.request.prompt, None, [], finished=False)
        completion = whole.outputs[0] if whole else _completion()
        is_delta = self.kind == RequestOutputKind.DELTA
        completion.text = text[self.characters :] if is_delta else text
        completion.token_ids = token_ids[self.tokens :] if is_delta else token_ids
        output.outputs = [completion]
        self.characters, self.tokens = len(text), len(token_ids)
        return output


def _completion() -> CompletionOutput:
    return CompletionOutput(index=0, text="", token_ids=[], cumulative_logprob=None, logprobs=None)
