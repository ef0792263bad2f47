"""Hand-off to an inference engine: a server that speaks OpenAI's completions protocol writes what follows a prefix."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from reft_math.decoding.bounded import bound
from reft_math.errors import Unfinished, UserError

TIMEOUT_S = 600.0
CONNECT_S = 10.0
MAX_RETRIES = 6  # about 22 s of waiting in all, where the server does not say how long
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 8.0  # as the client's own

_WAYS_OUT = {
    401: "; is its key in OPENAI_API_KEY?",
    403: "; is its key in OPENAI_API_KEY?",
    404: "; are --engine and --engine-model right?",
}


@dataclass(frozen=True)
class Continuation:
    """What the server wrote: text, its tokens (the end token included where the server counts it), and whether it
    ended by itself."""

    text: str
    num_tokens: int
    finished: bool


class Engine:
    """A server with the base model, such as vLLM, SGLang or ``transformers serve``.

    Prompts go as token ids. A server that refuses them (``transformers serve``) gets text instead, once it is certain
    that the tokenizer reads the same ids from it, and its own ``generation_config``, without which it would decode
    greedily, with the checkpoint's penalties.

    Args:
        url: Where the protocol starts, such as ``http://localhost:8000/v1``.
        tokenizer: The base's.
        model: The base's name on the server; may be left out where it serves only one.
        concurrency: Requests at once.
        timeout: Seconds of silence after which an answer is not waited for any longer; it may take as many to come.

    What fails (no connection, no answer in time, status 408, 409, 429 or 5xx, an answer that is no completion) is tried
    again up to `MAX_RETRIES` times, after waits that double and are shortened at random, or as long as the server says
    (up to two minutes). What is refused is not.

    The key, where the server wants one, is the environment variable ``OPENAI_API_KEY``. It goes to the server and
    nowhere else: where the server repeats it, errors do not.

    Raises:
        UserError: The server cannot be reached, or has not the one model.
    """

    def __init__(
        self,
        url: str,
        tokenizer: PreTrainedTokenizerBase,
        model: str | None = None,
        concurrency: int = 32,
        timeout: float = TIMEOUT_S,
    ) -> None:
        try:
            import openai
        except ImportError:
            raise UserError("--engine needs the package openai: uv sync --extra engine") from None
        self._openai = openai
        self._url, self._tokenizer, self._concurrency, self._timeout = url, tokenizer, concurrency, timeout
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError("OPENAI_API_KEY must be one line of ASCII, for it is sent in a header; set it again")
        self._client = openai.OpenAI(
            base_url=url,
            api_key=self._key or "none",
            max_retries=MAX_RETRIES,
            timeout=openai.Timeout(timeout, connect=CONNECT_S),
            default_headers={"Accept-Encoding": "identity"},
            http_client=openai.DefaultHttpxClient(
                follow_redirects=False,  # what is asked would get lost on the way, or go to another
                event_hooks={"response": [partial(bound, seconds=timeout)]},
            ),
        )
        self._takes_ids: bool | None = None  # unknown as yet
        self._model = model or self._only_model()

    def complete(
        self,
        prompts: Sequence[list[int]],
        max_tokens: Sequence[int],
        end_token_ids: Sequence[int],
        sampling: dict[str, Any],
        seed: int,
        stops: Sequence[str] = (),
    ) -> list[Continuation]:
        """Continues prompts, ``concurrency`` of them at once.

        Args:
            prompts: Token ids, prefixes included.
            max_tokens: How many tokens each may get.
            end_token_ids: Tokens at which a continuation ends.
            sampling: ``temperature``, ``top_p``, ``top_k``, ``min_p``; empty is greedy.
            seed: Of the samples; the server's own business how it is used.
            stops: Texts at which a continuation ends; whether they stand in it is the server's own business.

        Raises:
            Unfinished: The server refuses, keeps failing, or keeps answering what is no completion. What was begun is
                waited for, and what came of it is in the error, a `Continuation` by the place of its prompt.
        """
        jobs = [
            partial(self._continue, prompt, limit, list(end_token_ids), sampling, seed + index, list(stops))
            for index, (prompt, limit) in enumerate(zip(prompts, max_tokens, strict=True))
        ]
        done: dict[int, Continuation] = {}
        places = list(range(len(jobs)))
        alone = 1 if self._takes_ids is None else 0  # a request alone finds it out
        for group in (places[:alone], places[alone:]):
            _do({place: jobs[place] for place in group}, self._concurrency, done)
        return [done[place] for place in places]

    def _continue(
        self,
        prompt: list[int],
        max_tokens: int,
        end_token_ids: list[int],
        sampling: dict[str, Any],
        seed: int,
        stops: list[str],
    ) -> Continuation:
        settings: dict[str, Any] = {
            "model": self._model,
            "max_tokens": max_tokens,
            "temperature": sampling.get("temperature", 0.0),
            **({"top_p": sampling["top_p"]} if "top_p" in sampling else {}),
            **({"seed": seed} if sampling else {}),
            **({"stop": stops} if stops else {}),
        }
        beyond_openai = {name: sampling[name] for name in ("top_k", "min_p") if sampling.get(name)}
        try:
            if self._takes_ids is not False:
                try:
                    extra = {"stop_token_ids": end_token_ids, **beyond_openai}
                    found = self._ask(prompt=prompt, extra_body=extra, **settings)
                    self._takes_ids = True
                    return found
                except (self._openai.BadRequestError, self._openai.UnprocessableEntityError):
                    if self._takes_ids:
                        raise
                    self._takes_ids = False
            extra = {"generation_config": _generation_config(end_token_ids, sampling)}
            return self._ask(prompt=self._as_text(prompt), extra_body=extra, **settings)
        except self._openai.OpenAIError as error:
            raise self._failed(error) from None

    def _ask(self, **request: Any) -> Continuation:
        """One completion. The client tries again what failed; what is no completion is asked for again here."""
        for retry in range(MAX_RETRIES + 1):
            if retry > 0:
                time.sleep(_wait(retry))
            body = self._client.completions.with_raw_response.create(**request).http_response.content
            if (found := _completion(body)) is not None:
                text, num_tokens, finished = found
                if num_tokens is None or num_tokens > request["max_tokens"] or (text and not num_tokens):
                    num_tokens = len(self._tokenizer.encode(text, add_special_tokens=False)) + finished
                return Continuation(text, num_tokens, finished)
        said = self._line(body.decode(errors="replace"))
        raise self._stopped(f"answered what is no completion, {MAX_RETRIES + 1} times in all ({said})")

    def _as_text(self, prompt: list[int]) -> str:
        """Text from which the tokenizer reads ``prompt``, its own special tokens added as the server's will be."""
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
            if status < 400 or status in (401, 403, 429):  # about us, not about what the server can do
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
        """What a server refuses is not tried again, what it fails at is, unless it says for how long it will."""
        status = int(getattr(error, "status_code", 0))  # none where there was no answer
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
        """What the server said, or what became of the connection."""
        response = getattr(error, "response", None)
        if response is None:  # the client says no more than that it failed
            error = error.__cause__ if isinstance(error.__cause__, Exception) else error
            return self._line(str(error) or type(error).__name__)
        return self._line(str(error) if response.text in str(error) else f"{error} {response.text}")

    def _line(self, text: str) -> str:
        """What others said, on one line, shortened, and without our key."""
        if self._key:
            text = text.replace(self._key, "***")
        return " ".join(text.split())[:200]


def _do(jobs: Mapping[int, Callable[[], Continuation]], concurrency: int, done: dict[int, Continuation]) -> None:
    """Runs jobs in ``concurrency`` threads and puts their results into ``done``; begins none after a failure.

    The threads are no executor's: for those, an interrupted process would wait until the server has answered.

    Raises:
        Unfinished: A job raised a `UserError`.
    """
    waiting = iter(list(jobs.items()))  # shared: each thread takes the next
    failures: list[BaseException] = []

    def work() -> None:
        for place, job in waiting:
            try:
                done[place] = job()
            except BaseException as error:
                failures.append(error)
            if failures:
                return

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(concurrency, len(jobs)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for failure in failures:
        if not isinstance(failure, UserError):
            raise failure
    if failures:
        raise Unfinished(str(failures[0]), done)


def _wait(retry: int) -> float:
    """Seconds before the first, second, … retry: doubled each time up to a bound, and up to a quarter less at random,
    so that requests that failed together do not come again together."""
    return min(FIRST_WAIT_S * 2.0 ** (retry - 1), LONGEST_WAIT_S) * random.uniform(0.75, 1.0)


def _completion(body: bytes) -> tuple[str, int | None, bool] | None:
    """Text, its tokens where they are counted, and whether it ended by itself; None where that is no completion."""
    try:
        answer = json.loads(body)
        choice = answer["choices"][0]
        text, reason = choice["text"], choice["finish_reason"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    if not isinstance(text, str) or reason not in ("stop", "length"):
        return None
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # no half characters
    usage = answer.get("usage")
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return text, count if type(count) is int and count >= 0 else None, reason == "stop"


def _generation_config(end_token_ids: list[int], sampling: dict[str, Any]) -> str:
    """What ``transformers serve`` takes in place of the checkpoint's habits, as JSON."""
    how = {"do_sample": True, **sampling} if sampling else {"do_sample": False}
    return json.dumps({"eos_token_id": end_token_ids, **how})
