"""Hand-off to an inference engine: a server with OpenAI's completions protocol continues a prefix."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event
from typing import Any

from transformers import PreTrainedTokenizerBase

from reft_math.commands.options.engine import EngineOptions
from reft_math.errors import Unfinished, UserError

TIMEOUT_S = 600.0
CONNECT_S = 10.0
MAX_RETRIES = 6  # about 22 s of waiting in total, unless the server says how long

_WAYS_OUT = {
    401: "; is its key in OPENAI_API_KEY?",
    403: "; is its key in OPENAI_API_KEY?",
    404: "; are --engine and --engine-model right?",
}


@dataclass(frozen=True)
class Continuation:
    """The server's text, its number of tokens (with the end token if the server counts it), and whether it ended by
    itself; of a `ServedAdapter` also what its gate measured."""

    text: str
    num_tokens: int
    finished: bool
    report: dict[str, Any] | None = None


@dataclass(frozen=True)
class ServedAdapter:
    """An adapter that the server applies under a gate: `reft_math.engines.vllm.served`.

    Attributes:
        name: Its name on the server.
        gate: The gate's text.
        parameters: `parameters_sha256` of the adapter that it should be.
    """

    name: str
    gate: str
    parameters: str


class Engine:
    """A server with the base model, such as vLLM, SGLang or ``transformers serve``.

    Prompts are sent as token ids. A server that refuses them (``transformers serve``) gets text instead, if the
    tokenizer reads the same ids from it, and a ``generation_config``, without which it would decode greedily with the
    checkpoint's penalties.

    Args:
        url: Base address of the protocol, such as ``http://localhost:8000/v1``.
        tokenizer: The base's tokenizer.
        model: The base's name on the server; may be left out if it serves only one model.
        concurrency: Number of concurrent requests.
        timeout: Seconds to wait for an answer.
        adapter: An adapter that the server applies to every completion.

    openai's client retries failures (no connection, no answer in time, status 408, 409, 429 or 5xx) up to `MAX_RETRIES`
    times, after waits that double, or as long as the server says (up to two minutes). It does not retry refusals or
    answers that are not completions.

    If the server needs a key, it is the environment variable ``OPENAI_API_KEY``. It is sent only to the server, and
    removed from error messages if the server repeats it.

    Raises:
        UserError: The server cannot be reached, refuses the key, or without ``model`` does not list exactly one.
    """

    def __init__(
        self,
        url: str,
        tokenizer: PreTrainedTokenizerBase,
        model: str | None = None,
        concurrency: int = 32,
        timeout: float = TIMEOUT_S,
        adapter: ServedAdapter | None = None,
    ) -> None:
        try:
            import openai
        except ImportError:
            raise UserError("--engine needs the package openai: uv sync --extra engine") from None
        self._openai = openai
        self._url, self._tokenizer, self._concurrency, self._timeout = url, tokenizer, concurrency, timeout
        self._adapter = adapter
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError("OPENAI_API_KEY must be one line of ASCII, for it is sent in a header; set it again")
        self._client = openai.OpenAI(
            base_url=url,
            api_key=self._key or "none",
            max_retries=MAX_RETRIES,
            timeout=openai.Timeout(timeout, connect=CONNECT_S),
            # A redirected request would lose its body, or go to another server.
            http_client=openai.DefaultHttpxClient(follow_redirects=False),
        )
        self._model = model or self._only_model()
        self._takes_ids = self._accepts_ids()

    @classmethod
    def from_options(
        cls, options: EngineOptions, tokenizer: PreTrainedTokenizerBase, adapter: ServedAdapter | None = None
    ) -> Engine | None:
        """Connects to the server that the options name; None if they name none."""
        if options.engine is None:
            return None
        name, concurrency, timeout = options.engine_model, options.engine_concurrency, options.engine_timeout
        return cls(options.engine, tokenizer, name, concurrency, timeout, adapter)

    def complete(
        self,
        prompts: Sequence[list[int]],
        max_tokens: Sequence[int],
        end_token_ids: Sequence[int],
        sampling: dict[str, Any],
        seed: int,
        stops: Sequence[str] = (),
    ) -> list[Continuation]:
        """Continues prompts, ``concurrency`` of them at a time.

        Args:
            prompts: Token ids of prompts and prefixes.
            max_tokens: Maximum number of tokens for each.
            end_token_ids: Tokens at which a continuation ends.
            sampling: ``temperature``, ``top_p``, ``top_k``, ``min_p``; empty is greedy.
            seed: Seed of the samples; its use depends on the server.
            stops: Texts at which a continuation ends; whether it contains them depends on the server.

        Raises:
            Unfinished: The server refuses, keeps failing, or answers something else. Requests under way are awaited;
                the error holds their `Continuation` by index of the prompt.
        """
        failed = Event()

        def work(index: int) -> Continuation | None:
            if failed.is_set():
                return None
            try:
                return self._continue(
                    prompts[index], max_tokens[index], list(end_token_ids), sampling, seed + index, list(stops)
                )
            except BaseException:
                failed.set()
                raise

        pool = ThreadPoolExecutor(self._concurrency)
        try:
            futures = [pool.submit(work, index) for index in range(len(prompts))]
            wait(futures)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # an interrupt does not wait for the server
        errors = [error for future in futures if (error := future.exception()) is not None]
        for error in errors:
            if not isinstance(error, UserError):
                raise error
        found = [None if future.exception() else future.result() for future in futures]
        done = {place: one for place, one in enumerate(found) if one is not None}
        if errors:
            raise Unfinished(str(errors[0]), done)
        return list(done.values())

    def _accepts_ids(self) -> bool:
        """Returns whether the server accepts token ids, by asking it for one token."""
        prompt, end = list(self._tokenizer("1").input_ids), self._tokenizer.eos_token_id
        extra = {"stop_token_ids": [] if end is None else [end]}
        try:
            self._client.completions.create(model=self._model, prompt=prompt, max_tokens=1, extra_body=extra)
        except (self._openai.BadRequestError, self._openai.UnprocessableEntityError):
            return False
        except self._openai.OpenAIError as error:
            raise self._failed(error) from None
        except ValueError:  # not JSON; the first completion reports it
            pass
        return True

    def _continue(
        self,
        prompt: list[int],
        max_tokens: int,
        end_token_ids: list[int],
        sampling: dict[str, Any],
        seed: int,
        stops: list[str],
    ) -> Continuation:
        """One completion."""
        request: dict[str, Any] = {
            "model": self._model,
            "max_tokens": max_tokens,
            "temperature": sampling.get("temperature", 0.0),
            **({"top_p": sampling["top_p"]} if "top_p" in sampling else {}),
            **({"seed": seed} if sampling else {}),
            **({"stop": stops} if stops else {}),
        }
        if self._takes_ids:
            beyond_openai = {name: sampling[name] for name in ("top_k", "min_p") if sampling.get(name)}
            request |= {"prompt": prompt, "extra_body": {"stop_token_ids": end_token_ids, **beyond_openai}}
        else:
            config = _generation_config(end_token_ids, sampling)
            request |= {"prompt": self._as_text(prompt), "extra_body": {"generation_config": config}}
        if self._adapter is not None:
            request["extra_body"]["reft"] = {"adapter": self._adapter.name, "gate": self._adapter.gate}
        try:
            response = self._client.completions.with_raw_response.create(**request)
        except self._openai.OpenAIError as error:
            raise self._failed(error) from None
        body = response.http_response.text
        try:
            answer = json.loads(body)
            choice = answer["choices"][0]
            text, reason = choice["text"], choice["finish_reason"]
            num_tokens = (answer.get("usage") or {}).get("completion_tokens")
        except (ValueError, TypeError, LookupError, AttributeError):
            text = reason = None
        if not isinstance(text, str) or reason not in ("stop", "length"):
            raise self._stopped(f"answered what is no completion ({self._line(body)})")
        is_finished = reason == "stop"
        if not num_tokens or num_tokens > max_tokens:
            num_tokens = len(self._tokenizer.encode(text, add_special_tokens=False)) + is_finished
        return Continuation(text, num_tokens, is_finished, self._report(choice))

    def _report(self, choice: dict[str, Any]) -> dict[str, Any] | None:
        """Returns what the gate measured, if the server was asked for an adapter."""
        if self._adapter is None:
            return None
        report = choice.get("reft")
        if not isinstance(report, dict) or not {"kl", "dead_band", "closing_position", "parameters"} <= report.keys():
            raise self._stopped("answered without a gate's report; is it reft_math.engines.vllm.served?")
        if report["parameters"] != self._adapter.parameters:
            raise self._stopped(
                f"has another adapter as {self._adapter.name} ({self._line(str(report['parameters']))}) than --adapter"
                f" ({self._adapter.parameters})"
            )
        return report

    def _as_text(self, prompt: list[int]) -> str:
        """Returns text from which the tokenizer, adding its special tokens like the server's, reads ``prompt``."""
        for ids in (prompt, prompt[1:]):
            text = str(self._tokenizer.decode(ids, skip_special_tokens=False))
            if list(self._tokenizer(text).input_ids) == prompt:
                return text
        raise UserError(
            f"engine {self._url} takes text only, and no text has the tokens of this prompt and prefix; use a server"
            " that takes token ids, such as vLLM or SGLang, or go on without --engine"
        )

    def _only_model(self) -> str:
        try:
            body = self._client.models.with_raw_response.list().http_response.content
            names = [self._line(str(model["id"])) for model in json.loads(body)["data"]]
        except self._openai.APIStatusError as error:
            status = error.status_code
            if status < 400 or status in (401, 403, 429):  # about our access, not the server's abilities
                raise self._failed(error) from None
            raise self._lists_nothing(self._reason(error)) from None
        except self._openai.OpenAIError as error:
            raise self._failed(error) from None
        except (ValueError, TypeError, KeyError, RecursionError):
            raise self._lists_nothing(self._line(body.decode(errors="replace"))) from None
        if len(names) != 1:
            raise UserError(
                f"engine {self._url} serves {', '.join(names) or 'no model'}; say with --engine-model which is the base"
            )
        return names[0]

    def _lists_nothing(self, said: str) -> UserError:
        return UserError(
            f"engine {self._url} does not list its models ({said}); say with --engine-model which is the base"
        )

    def _failed(self, error: Exception) -> UserError:
        """Makes the error of a failed request. Only failures were retried, unless the server asked for a long wait."""
        status = int(getattr(error, "status_code", 0))  # 0 without an answer
        is_refusal = 0 < status < 500 and status not in (408, 409, 429)
        happened = "refused" if is_refusal else f"failed, tried again up to {MAX_RETRIES} times"
        is_late = isinstance(error, self._openai.APITimeoutError)
        way_out = f"; --engine-timeout is {self._timeout:g} s" if is_late else _WAYS_OUT.get(status, "")
        if 300 <= status < 400:
            way_out = "; it points elsewhere, which is not followed: is the address in --engine right?"
        return self._stopped(f"{happened} ({self._reason(error)}){way_out}")

    def _stopped(self, why: str) -> UserError:
        return UserError(
            f"engine {self._url} {why}; what is recorded is kept, and the same command goes on with --resume"
        )

    def _reason(self, error: Exception) -> str:
        """Returns the server's message, or the connection's error."""
        response = getattr(error, "response", None)
        if response is None:  # the client says only that it failed
            error = error.__cause__ if isinstance(error.__cause__, Exception) else error
            return self._line(str(error) or type(error).__name__)
        return self._line(str(error) if response.text in str(error) else f"{error} {response.text}")

    def _line(self, text: str) -> str:
        """Returns a foreign message on one line, shortened, and without our key."""
        if self._key:
            text = text.replace(self._key, "***")
        return " ".join(text.split())[:200]


def _generation_config(end_token_ids: list[int], sampling: dict[str, Any]) -> str:
    """Returns, as JSON, the settings with which ``transformers serve`` replaces the checkpoint's defaults."""
    how = {"do_sample": True, **sampling} if sampling else {"do_sample": False}
    return json.dumps({"eos_token_id": end_token_ids, **how})
