"""vLLM's `LLM` with an adapter and a gate per request."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from vllm import LLM, RequestOutput, SamplingParams
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind

from reft_math.engines.vllm.loading import WORKER, Loaded, first_of, loaded
from reft_math.engines.vllm.requests import (
    GatedRequest,
    Reft,
    check_extra_args,
    gated_output,
    gated_request,
)
from reft_math.errors import UserError


class ReftLLM(LLM):  # type: ignore[misc]
    """`vllm.LLM` whose requests may each have an adapter and a gate, batched with ordinary ones.

    Args:
        model: The base, as vLLM takes it.
        adapters: Folders or hub ids of adapters by the names that requests give them.
        **kwargs: As for `vllm.LLM`. Hooks need ``enforce_eager``, which is set; without ``sampling_params`` samples
            have vLLM's own settings, not the checkpoint's, unless ``generation_config="auto"``.

    Raises:
        UserError: An adapter does not fit, or vLLM would run in a way in which adapters do not act.
    """

    def __init__(self, model: str, adapters: Mapping[str, str | Path] | None = None, **kwargs: Any) -> None:
        if kwargs.setdefault("enforce_eager", True) is not True:
            raise UserError("a gate inside vLLM needs enforce_eager=True: CUDA graphs and compiled code leave it out")
        os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
        kwargs.setdefault("generation_config", "vllm")  # no penalties of the checkpoint's, unasked
        if current_platform.is_cpu():  # a seed and a prompt in pieces end vLLM there: "does not use offset"
            kwargs.setdefault("enable_chunked_prefill", False)
        super().__init__(model, worker_extension_cls=WORKER, **kwargs)
        self._adapters: dict[str, Loaded] = {}
        self._requests = 0
        for name, source in (adapters or {}).items():
            self.load_adapter(name, source)

    def load_adapter(self, name: str, source: str | Path, revision: str | None = None) -> None:
        """Loads an adapter from a folder or the hub, beside those that are there."""
        problems = self.collective_rpc("reft_load", args=(name, str(source), revision))
        if (problem := first_of(problems)) is not None:
            raise UserError(str(problem))
        self._adapters[name] = loaded(name, source, revision)

    def generate(
        self,
        prompts: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        reft: Reft | Sequence[Reft | None] | None = None,
        use_tqdm: bool = True,
        **kwargs: Any,
    ) -> list[RequestOutput]:
        """As `vllm.LLM.generate`, with an adapter and a gate for all requests or for each.

        Args:
            prompts: Texts, or lists of token ids, or vLLM's dictionaries with ``prompt_token_ids``.
            sampling_params: For all, or for each.
            reft: For all, or for each; None leaves a request to the base.
            use_tqdm, **kwargs: As for `vllm.LLM.generate`; with ``reft`` no others.

        Returns:
            Outputs in the prompts' order, each with its `GateReport` as ``reft``, or None.

        Raises:
            UserError: A request cannot be gated; nothing was begun.
        """
        if reft is None:
            return super().generate(prompts, sampling_params, use_tqdm=use_tqdm, **kwargs)  # type: ignore[no-any-return]
        if kwargs:
            raise UserError(f"generate with an adapter takes no {', '.join(kwargs)}; leave it out")
        prompts = [prompts] if isinstance(prompts, str | dict) else list(prompts)
        ids = [self._token_ids(prompt) for prompt in prompts]
        params = _for_each(sampling_params or self.get_default_sampling_params(), len(ids), SamplingParams)
        refts = _for_each(reft, len(ids), Reft)
        config = self.llm_engine.model_config
        requests = [
            None
            if one is None
            else gated_request(
                tokens,
                each,
                one,
                self._adapters,
                config.dtype,
                config.max_model_len,
                self.get_tokenizer(),
                _salt(prompt),
            )
            for prompt, tokens, each, one in zip(prompts, ids, params, refts, strict=True)
        ]
        ordinary = [
            prompt if isinstance(prompt, dict) else {"prompt_token_ids": tokens}
            for prompt, tokens in zip(prompts, ids, strict=True)
        ]
        run = _Run(self, ordinary, params, requests, self._requests)
        self._requests += len(ids)
        return run.outputs(use_tqdm)

    def _token_ids(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            return list(self.get_tokenizer().encode(prompt))
        unread = set(prompt) - {"prompt", "prompt_token_ids", "cache_salt"} if isinstance(prompt, dict) else set()
        if unread:
            raise UserError(f"with adapters a prompt is text or token ids; it also has {', '.join(sorted(unread))}")
        if isinstance(prompt, dict) and "prompt_token_ids" not in prompt:
            return list(self.get_tokenizer().encode(prompt["prompt"]))
        return list(prompt["prompt_token_ids"] if isinstance(prompt, dict) else prompt)


class _Run:
    """The requests of one call, gated and ordinary ones in one batch."""

    def __init__(
        self,
        llm: ReftLLM,
        prompts: list[dict[str, Any]],
        params: list[SamplingParams],
        requests: list[GatedRequest | None],
        first_id: int,
    ) -> None:
        self.llm, self.engine, self.requests, self.first_id = llm, llm.llm_engine, requests, first_id
        self.prompts, self.params = prompts, params
        self.done: dict[int, RequestOutput] = {}

    def outputs(self, use_tqdm: bool) -> list[RequestOutput]:
        try:
            for index in range(len(self.prompts)):
                self._add(index)
            with tqdm(total=len(self.prompts), desc="completing", disable=not use_tqdm) as bar:
                while len(self.done) < len(self.prompts):
                    before = len(self.done)
                    self._take([output for output in self.engine.step() if output.finished])
                    bar.update(len(self.done) - before)
        except BaseException:
            self._abort()
            raise
        return [self.done[index] for index in range(len(self.prompts))]

    def _add(self, index: int) -> None:
        request = self.requests[index]
        if request is None:
            check_extra_args(self.params[index])
            prompt, params = self.prompts[index], self.params[index].clone()
        else:
            prompt, params = request.engine_request()
        params.output_kind = RequestOutputKind.FINAL_ONLY
        self.engine.add_request(self._id(index), prompt, params)

    def _id(self, index: int) -> str:
        return f"reft-{self.first_id + index}"

    def _take(self, finished: list[RequestOutput]) -> None:
        """Takes answers, and adds the requests that they lead to."""
        by_index = {int(output.request_id.removeprefix("reft-")) - self.first_id: output for output in finished}
        read = {
            index: request
            for index, output in by_index.items()
            if (request := self.requests[index]) is not None and request.is_read_by(output)
        }
        divergences: dict[int, list[float] | None] = {}
        if read:
            measured = [request.measured() for request in read.values()]
            found = first_of(self.llm.collective_rpc("reft_divergences", args=(measured,)))
            divergences = dict(zip(read, found, strict=True))
        for index, output in by_index.items():
            request = self.requests[index]
            if request is None:
                output.reft = None
                self.done[index] = output
                continue
            request.take(output, divergences.get(index))
            if request.ask is None:
                if request.leaves_states:
                    self.llm.collective_rpc("reft_forget", args=(request.state_keys(),))
                self.done[index] = gated_output(self._id(index), request)
            else:
                self._add(index)

    def _abort(self) -> None:
        left = [index for index in range(len(self.prompts)) if index not in self.done]
        self.engine.abort_request([self._id(index) for index in left])
        keys = [key for index in left if (request := self.requests[index]) is not None for key in request.state_keys()]
        self.llm.collective_rpc("reft_forget", args=(keys,))


def _for_each(value: Any, number: int, kind: type) -> list[Any]:
    values = [value] * number if isinstance(value, kind) else list(value)
    if len(values) != number:
        raise UserError(
            f"there must be one {kind.__name__} for all prompts or for each; got {len(values)} for {number}"
        )
    return values


def _salt(prompt: Any) -> str | None:
    return prompt.get("cache_salt") if isinstance(prompt, dict) else None
