"""vLLM's requests for the stages of a gated one, and what a gate does not go with."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any
from uuid import uuid4

import torch
from vllm import CompletionOutput, RequestOutput, SamplingParams

from interventions.gates import AlwaysOn, Gate, KLGate, PromptOnly, TokenGate
from interventions.positions import Positions
from reft_math.engines.vllm.course import Ask, Course, GateReport, Rest, Tokens, Verify, Written, course
from reft_math.engines.vllm.edits import Asked
from reft_math.engines.vllm.loading import Loaded, gate_of
from reft_math.errors import UserError

_keys = count()
_DEFAULTS = SamplingParams()
_UNTOLD = (  # what a gated output does not tell
    *("n", "logprobs", "prompt_logprobs"),
    *("logprob_token_ids", "prompt_logprob_token_ids", "trace_decode_token_ids"),
)
# Options whose meaning depends on all tokens written so far, which vLLM would count from each stage's start.
_COUNTED = (
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "repetition_detection", "min_tokens", "bad_words"),
    *("structured_outputs", "thinking_token_budget"),
)
_SALT = uuid4().hex  # nobody who sends a cache_salt knows it
_SEEDS = 2**63 - 1
CONTEXT = 6  # tokens of the prompt that decoding starts from


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
        prompt: Token ids.
        params: The user's settings, of the whole text.
        salt: The user's ``cache_salt``.
        ask: What to ask of the engine next; None once the request is done.
        written, report: All tokens, and what the gate measured, once it is done.
        reads_cache: Whether the base's next reading of a draft takes the blocks that it finds.
    """

    prompt: Tokens
    params: SamplingParams
    adapter: Loaded
    gate: Gate
    max_tokens: int
    tokenizer: Any
    salt: str | None = None
    report: GateReport | None = None
    written: Written | None = None
    reads_cache: bool = True
    _key: str = field(default_factory=lambda: f"reft-{next(_keys)}")

    def __post_init__(self) -> None:
        self.course: Course = course(self.prompt, self.max_tokens, self.gate, self._stop_in)
        self.ask: Ask | None = next(self.course)

    def answer(self, answer: Written | list[float]) -> None:
        """Takes the engine's answer to ``ask``, and moves on to the next; None of them is left at the end."""
        try:
            self.ask = self.course.send(answer)
        except StopIteration as done:
            self.ask = None
            self.written, self.report = done.value

    def is_read_by(self, output: RequestOutput) -> bool:
        """Returns whether this output ends the base's reading of a draft: its divergences can be measured."""
        return isinstance(self.ask, Verify) and output.outputs[0].finish_reason == "length"

    def take(self, output: RequestOutput, divergences: list[float] | None) -> None:
        """Takes a finished request's output, of `Verify` with what the worker measured if it could, and moves on."""
        completion = output.outputs[0]
        if completion.finish_reason not in ("stop", "length"):  # given up by the engine
            self.written, self.report = Written(self.kept, completion.finish_reason), GateReport()
            self.ask = None
        elif isinstance(self.ask, Verify):
            self.reads_cache = divergences is not None  # else the same again, all of it computed
            if divergences is not None:
                self.answer(divergences)
        else:
            self.answer(Written(list(completion.token_ids), completion.finish_reason, completion.stop_reason))

    @property
    def leaves_states(self) -> bool:
        """Whether the worker may still keep states of it: of a draft that nobody will verify."""
        return self.written is None or self.written.finish_reason not in ("stop", "length")

    @property
    def kept(self) -> Tokens:
        """Tokens that are certain by now."""
        if self.written is not None:
            return list(self.written.token_ids)
        assert self.ask is not None
        unsure = self.ask.num_drafted - 1 if isinstance(self.ask, Verify) else 0
        return self.ask.token_ids[len(self.prompt) : len(self.ask.token_ids) - unsure]

    def text(self, token_ids: Tokens) -> str:
        """Decodes tokens as what follows the prompt: some tokenizers drop the space before a first word."""
        tail = self.prompt[-CONTEXT:]
        skip = self.params.skip_special_tokens
        head, whole = (str(self.tokenizer.decode(ids, skip_special_tokens=skip)) for ids in (tail, tail + token_ids))
        return (
            whole[len(head) :]
            if whole.startswith(head)
            else str(self.tokenizer.decode(token_ids, skip_special_tokens=skip))
        )

    def _stop_in(self, token_ids: Tokens) -> tuple[int, str] | None:
        """Returns the least number of tokens in which a stop text is complete, and the first stop text in them."""
        stops = self.params.stop or []

        def has_stop(number: int) -> bool:
            text = self.text(token_ids[:number])
            return any(stop in text for stop in stops)

        if not stops or not has_stop(len(token_ids)):
            return None
        number = bisect_left(range(len(token_ids)), True, key=has_stop)
        text = self.text(token_ids[:number])
        return number, min((text.find(stop), stop) for stop in stops if stop in text)[1]

    def ended_text(self, done: Written) -> tuple[str, Written]:
        """Returns text and tokens up to the first stop text, or the end token, as vLLM ends them."""
        found = self._stop_in(list(done.token_ids))
        if found is not None:
            number, stop = found
            done = Written(list(done.token_ids)[:number], "stop", stop)
            text = self.text(list(done.token_ids))
            place = text.index(stop) + len(stop) * self.params.include_stop_str_in_output
            return text[:place], done
        tokens = list(done.token_ids)
        ends_in_token = done.finish_reason == "stop" and not isinstance(done.stop_reason, str)
        return self.text(tokens[:-1] if ends_in_token else tokens), done

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
            params = SamplingParams(max_tokens=1, temperature=0, detokenize=False, ignore_eos=True)
            params.skip_reading_prefix_cache = not self.reads_cache
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
        own = f"{_SALT}/{self.adapter.parameters}/{positions}"
        own += "" if positions == "all" else f"/{len(self.prompt)}"
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


def check_extra_args(params: SamplingParams) -> None:
    """Refuses the argument that is the worker's own: what it holds would be done as it is."""
    if "reft" in (params.extra_args or {}):
        raise UserError("extra_args has no 'reft': ask for an adapter by reft=, or the field reft of a request")


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
    tokenizer: Any,
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
    counted = () if isinstance(gate, AlwaysOn | PromptOnly) else _COUNTED
    for name in (*_UNTOLD, *counted):
        value = getattr(params, name, None)  # some are newer than others
        if value != getattr(_DEFAULTS, name, None):
            raise UserError(f"a gate inside vLLM does not go with {name}={value!r}; leave it out")
    check_extra_args(params)
    room = max_length - len(prompt)
    if room < 1:
        raise UserError(f"a prompt must be shorter than the engine's {max_length} tokens; got {len(prompt)}")
    max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
    return GatedRequest(list(prompt), params, adapter, gate.on(dtype), max_tokens, tokenizer, salt)


def gated_output(request_id: str, request: GatedRequest) -> RequestOutput:
    """Returns a finished request as vLLM's output, with the gate's report as ``reft``."""
    assert request.written is not None
    text, done = request.ended_text(request.written)
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
