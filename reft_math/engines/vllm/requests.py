"""vLLM's requests for the stages of a gated one, and what a gate does not go with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any

import torch
from vllm import CompletionOutput, RequestOutput, SamplingParams

from interventions.gates import AlwaysOn, Gate, KLGate, PromptOnly, TokenGate
from interventions.positions import Positions
from reft_math.engines.vllm.course import Ask, Course, Draft, GateReport, Rest, Tokens, Verify, Written, course
from reft_math.engines.vllm.edits import Asked
from reft_math.engines.vllm.loading import Loaded, gate_of
from reft_math.errors import UserError

_keys = count()
_DEFAULTS = SamplingParams()
# Options whose meaning depends on all tokens written so far, which vLLM would count from each stage's start.
_REFUSED = (
    *("n", "presence_penalty", "frequency_penalty", "min_tokens", "logprobs", "prompt_logprobs", "bad_words"),
    *("repetition_penalty", "structured_outputs"),
)
_SEEDS = 2**63 - 1


@dataclass(frozen=True)
class Reft:
    """Asks for an adapter and a gate in one request.

    Attributes:
        adapter: Name under which the adapter was loaded.
        gate: A gate or its text; None for the adapter's own.
    """

    adapter: str
    gate: Gate | str | None = None


@dataclass
class GatedRequest:
    """One request on its way.

    Attributes:
        report: What the gate measured, once the request is done.
        text: Tokens kept so far.
    """

    prompt: Tokens
    params: SamplingParams
    adapter: Loaded
    gate: Gate
    max_tokens: int
    salt: str | None = None
    report: GateReport | None = None
    written: Written | None = None
    _key: str = field(default_factory=lambda: f"reft-{next(_keys)}")

    def __post_init__(self) -> None:
        self.course: Course = course(self.prompt, self.max_tokens, self.gate)
        self.ask: Ask | None = next(self.course)

    def answer(self, answer: Written | list[float]) -> None:
        """Takes the engine's answer to ``ask``, and moves on to the next; None of them is left at the end."""
        try:
            self.ask = self.course.send(answer)
        except StopIteration as done:
            self.ask = None
            self.written, self.report = done.value

    @property
    def kept(self) -> Tokens:
        """Tokens that are certain by now."""
        if self.written is not None:
            return list(self.written.token_ids)
        return self.ask.token_ids[len(self.prompt) :] if isinstance(self.ask, Draft | Rest) else []

    def engine_request(self) -> tuple[dict[str, Any], SamplingParams]:
        """Returns prompt and parameters of the request that answers ``ask``."""
        ask = self.ask
        assert ask is not None
        step = len(ask.token_ids) - len(self.prompt)
        prompt: dict[str, Any] = {"prompt_token_ids": ask.token_ids}
        params = self.params.clone()
        params.extra_args = dict(params.extra_args or {})
        if isinstance(ask, Verify):
            first = len(ask.token_ids) - ask.num_drafted
            asked = Asked(None, "all", len(self.prompt), f"{self._key}-base", first)
            # All that is read must be computed: states that another request left in the cache were not kept.
            params = SamplingParams(
                max_tokens=1, temperature=0, detokenize=False, skip_reading_prefix_cache=True, ignore_eos=True
            )
            params.extra_args = {"reft": asdict(asked)}
            return self._salted(prompt, self.salt), params
        params.max_tokens = ask.max_tokens
        if params.seed is not None:
            params.seed = stage_seed(params.seed, step)
        if isinstance(ask, Rest):
            return self._salted(prompt, self.salt), params
        positions: Positions = "prompt" if isinstance(self.gate, PromptOnly) else self.adapter.positions
        key = f"{self._key}-draft" if ask.is_verified else None
        asked = Asked(self.adapter.name, positions, len(self.prompt), key, len(ask.token_ids) - 1)
        params.extra_args["reft"] = asdict(asked)
        # Blocks that this adapter wrote serve drafts alone that it edits at the same positions.
        own = f"reft/{self.adapter.parameters}/{positions}" + ("" if positions == "all" else f"/{len(self.prompt)}")
        return self._salted(prompt, f"{own}/{self.salt or ''}"), params

    def measured(self) -> tuple[str, str, int, int, str]:
        """Returns what the worker's ``reft_divergences`` takes, once `Verify` has been answered."""
        assert isinstance(self.ask, Verify)
        first = len(self.ask.token_ids) - self.ask.num_drafted
        direction = self.gate.direction if isinstance(self.gate, KLGate) else "mod||base"
        return f"{self._key}-draft", f"{self._key}-base", first, self.ask.num_drafted, direction

    def state_keys(self) -> list[str]:
        """Keys under which the worker may keep states."""
        return [f"{self._key}-draft", f"{self._key}-base"]

    @staticmethod
    def _salted(prompt: dict[str, Any], salt: str | None) -> dict[str, Any]:
        return prompt if salt is None else prompt | {"cache_salt": salt}


def stage_seed(seed: int, step: int) -> int:
    """Returns the seed of the stage that begins at a token: tokens that were not kept must not be drawn again."""
    return (seed + step * 0x9E3779B97F4A7C15) & _SEEDS


def gated_request(
    prompt: Tokens,
    params: SamplingParams,
    reft: Reft,
    adapters: dict[str, Loaded],
    dtype: torch.dtype,
    max_length: int,
    salt: str | None = None,
) -> GatedRequest | None:
    """Returns the request with its gate; None if the gate is ``off``, and the request an ordinary one.

    Raises:
        UserError: The adapter is unknown, the prompt leaves no room, or an option does not go with a gate.
    """
    adapter, gate = adapters.get(reft.adapter), gate_of(adapters, reft.adapter, reft.gate)
    assert adapter is not None
    if gate == TokenGate(0):
        return None
    refused = [] if isinstance(gate, AlwaysOn | PromptOnly) else _REFUSED
    for name in ("n", *refused):
        if getattr(params, name) != getattr(_DEFAULTS, name):
            raise UserError(f"a gate inside vLLM does not go with {name}={getattr(params, name)!r}; leave it out")
    room = max_length - len(prompt)
    if room < 1:
        raise UserError(f"a prompt must be shorter than the engine's {max_length} tokens; got {len(prompt)}")
    max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
    return GatedRequest(list(prompt), params, adapter, gate.on(dtype), max_tokens, salt)


def written(output: RequestOutput) -> Written:
    """Reads the answer of a finished request."""
    completion = output.outputs[0]
    return Written(list(completion.token_ids), completion.finish_reason, completion.stop_reason)


def gated_output(request_id: str, request: GatedRequest, tokenizer: Any) -> RequestOutput:
    """Returns a finished request as vLLM's output, with the gate's report as ``reft``."""
    assert request.written is not None
    params = request.params
    text, done = cut_at_stops(tokenizer, request.written, params.stop or [], params.include_stop_str_in_output)
    completion = CompletionOutput(
        index=0,
        text=text,
        token_ids=done.token_ids,
        cumulative_logprob=None,
        logprobs=None,
        finish_reason=done.finish_reason,
        stop_reason=done.stop_reason,
    )
    output = RequestOutput(
        request_id=request_id,
        prompt=None,
        prompt_token_ids=request.prompt,
        prompt_logprobs=None,
        outputs=[completion],
        finished=True,
    )
    output.reft = request.report
    return output


def cut_at_stops(tokenizer: Any, done: Written, stops: Sequence[str], keep_stop: bool) -> tuple[str, Written]:
    """Returns text and tokens, ended at the first stop text: stages find only those that lie within one of them.

    Tokens reach as far as the stop text is complete, as vLLM has it.
    """
    tokens = list(done.token_ids)
    for end in range(len(tokens) + 1) if any(stop in _text(tokenizer, tokens) for stop in stops) else ():
        text = _text(tokenizer, tokens[:end])
        found = [(text.find(stop), stop) for stop in stops if stop in text]
        if found:
            place, stop = min(found)
            return text[: place + len(stop) * keep_stop], Written(tokens[:end], "stop", stop)
    return _text(tokenizer, tokens), done


def _text(tokenizer: Any, token_ids: Tokens) -> str:
    return str(tokenizer.decode(token_ids, skip_special_tokens=True))
