"""vLLM's `LLM` with an adapter and a gate per request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from vllm import LLM, RequestOutput, SamplingParams
from vllm.platforms import current_platform

from reft_math.engines.vllm.course import Verify
from reft_math.engines.vllm.loading import WORKER, Loaded, first_of, loaded
from reft_math.engines.vllm.requests import GatedRequest, Reft, gated_output, gated_request, written
from reft_math.errors import UserError


class ReftLLM(LLM):  # type: ignore[misc]
    """`vllm.LLM` whose requests may each have an adapter and a gate, batched with ordinary ones.

    Args:
        model: The base, as vLLM takes it.
        adapters: Folders or hub ids of adapters by the names that requests give them.
        **kwargs: As for `vllm.LLM`. Hooks need ``enforce_eager``, which is set.

    Raises:
        UserError: An adapter does not fit, or vLLM would run in a way in which adapters do not act.
    """

    def __init__(self, model: str, adapters: Mapping[str, str | Path] | None = None, **kwargs: Any) -> None:
        if kwargs.setdefault("enforce_eager", True) is not True:
            raise UserError("a gate inside vLLM needs enforce_eager=True: CUDA graphs and compiled code leave it out")
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
            sampling_params: For all, or for each; the checkpoint's own by default.
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
            else gated_request(tokens, each, one, self._adapters, config.dtype, config.max_model_len, _salt(prompt))
            for prompt, tokens, each, one in zip(prompts, ids, params, refts, strict=True)
        ]
        run = _Run(self, ids, params, requests, self._requests)
        self._requests += len(ids)
        return run.outputs(use_tqdm)

    def _token_ids(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            return list(self.get_tokenizer().encode(prompt))
        if isinstance(prompt, dict) and "prompt_token_ids" not in prompt:
            return list(self.get_tokenizer().encode(prompt["prompt"]))
        return list(prompt["prompt_token_ids"] if isinstance(prompt, dict) else prompt)


class _Run:
    """The requests of one call, gated and ordinary ones in one batch."""

    def __init__(
        self,
        llm: ReftLLM,
        ids: list[list[int]],
        params: list[SamplingParams],
        requests: list[GatedRequest | None],
        first_id: int,
    ) -> None:
        self.llm, self.engine, self.ids, self.params, self.requests = llm, llm.llm_engine, ids, params, requests
        self.first_id = first_id
        self.done: dict[int, RequestOutput] = {}

    def outputs(self, use_tqdm: bool) -> list[RequestOutput]:
        try:
            for index in range(len(self.ids)):
                self._add(index)
            with tqdm(total=len(self.ids), desc="completing", disable=not use_tqdm) as bar:
                while len(self.done) < len(self.ids):
                    before = len(self.done)
                    self._take([output for output in self.engine.step() if output.finished])
                    bar.update(len(self.done) - before)
        except BaseException:
            self._abort()
            raise
        return [self.done[index] for index in range(len(self.ids))]

    def _add(self, index: int) -> None:
        request = self.requests[index]
        if request is None:
            prompt, params = {"prompt_token_ids": self.ids[index]}, self.params[index]
        else:
            prompt, params = request.engine_request()  # type: ignore[assignment]
        self.engine.add_request(self._id(index), prompt, params)

    def _id(self, index: int) -> str:
        return f"reft-{self.first_id + index}"

    def _take(self, finished: list[RequestOutput]) -> None:
        """Takes answers, and adds the requests that they lead to."""
        by_index = {int(output.request_id.removeprefix("reft-")) - self.first_id: output for output in finished}
        verified = [index for index in by_index if self.requests[index] and isinstance(self._ask(index), Verify)]
        if verified:
            measured = [self.requests[index].measured() for index in verified]  # type: ignore[union-attr]
            found = first_of(self.llm.collective_rpc("reft_divergences", args=(measured,)))
            divergences = dict(zip(verified, found, strict=True))
        for index, output in by_index.items():
            request = self.requests[index]
            if request is None:
                output.reft = None
                self.done[index] = output
                continue
            request.answer(divergences[index] if isinstance(request.ask, Verify) else written(output))
            if request.ask is None:
                self.done[index] = gated_output(self._id(index), request, self.llm.get_tokenizer())
            else:
                self._add(index)

    def _ask(self, index: int) -> Any:
        request = self.requests[index]
        return None if request is None else request.ask

    def _abort(self) -> None:
        left = [index for index in range(len(self.ids)) if index not in self.done]
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
