"""Hand-off to an inference engine: a server that speaks OpenAI's completions protocol writes what follows a prefix."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from reft_math.errors import UserError

TIMEOUT_S = 600.0
MAX_RETRIES = 6  # waits double from half a second to 8 s: about 24 s in all


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

    The key, where the server wants one, is the environment variable ``OPENAI_API_KEY``.

    Raises:
        UserError: The server cannot be reached, or has not the one model.
    """

    def __init__(
        self, url: str, tokenizer: PreTrainedTokenizerBase, model: str | None = None, concurrency: int = 32
    ) -> None:
        try:
            import openai
        except ImportError:
            raise UserError("--engine needs the package openai: uv sync --extra engine") from None
        self._openai = openai
        self._url, self._tokenizer, self._concurrency = url, tokenizer, concurrency
        key = os.environ.get("OPENAI_API_KEY", "none")
        self._client = openai.OpenAI(base_url=url, api_key=key, max_retries=MAX_RETRIES, timeout=TIMEOUT_S)
        self._takes_ids: bool | None = None  # unknown as yet
        self._model = model or self._only_model()

    def complete(
        self,
        prompts: Sequence[list[int]],
        max_tokens: Sequence[int],
        end_token_ids: Sequence[int],
        sampling: dict[str, Any],
        seed: int,
    ) -> list[Continuation]:
        """Continues prompts, ``concurrency`` of them at once.

        Args:
            prompts: Token ids, prefixes included.
            max_tokens: How many tokens each may get.
            end_token_ids: Tokens at which a continuation ends.
            sampling: ``temperature``, ``top_p``, ``top_k``, ``min_p``; empty is greedy.
            seed: Of the samples; the server's own business how it is used.

        Raises:
            UserError: The server keeps failing, or answers what is no completion.
        """
        jobs = list(zip(prompts, max_tokens, strict=True))
        if not jobs:
            return []
        same = (list(end_token_ids), sampling)
        done: list[Continuation] = []
        if self._takes_ids is None:  # a request alone finds it out
            done = [self._continue(*jobs[0], *same, seed)]
        with ThreadPoolExecutor(self._concurrency) as pool:
            rest = [
                pool.submit(self._continue, *job, *same, seed + index)
                for index, job in enumerate(jobs[len(done) :], start=len(done))
            ]
            try:
                return [*done, *(future.result() for future in rest)]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _continue(
        self, prompt: list[int], max_tokens: int, end_token_ids: list[int], sampling: dict[str, Any], seed: int
    ) -> Continuation:
        settings: dict[str, Any] = {
            "model": self._model,
            "max_tokens": max_tokens,
            "temperature": sampling.get("temperature", 0.0),
            **({"top_p": sampling["top_p"]} if "top_p" in sampling else {}),
            **({"seed": seed} if sampling else {}),
        }
        beyond_openai = {name: sampling[name] for name in ("top_k", "min_p") if sampling.get(name)}
        try:
            if self._takes_ids is not False:
                try:
                    extra = {"stop_token_ids": end_token_ids, **beyond_openai}
                    answer = self._client.completions.create(prompt=prompt, extra_body=extra, **settings)
                    self._takes_ids = True
                    return self._read(answer)
                except (self._openai.BadRequestError, self._openai.UnprocessableEntityError):
                    if self._takes_ids:
                        raise
                    self._takes_ids = False
            text = self._as_text(prompt)
            extra = {"generation_config": _generation_config(end_token_ids, sampling)}
            return self._read(self._client.completions.create(prompt=text, extra_body=extra, **settings))
        except UserError:
            raise
        except (self._openai.OpenAIError, ValueError) as error:
            raise self._failed(error) from None

    def _read(self, answer: Any) -> Continuation:
        choices = getattr(answer, "choices", None)
        choice = choices[0] if choices else None
        if choice is None or not isinstance(choice.text, str) or choice.finish_reason not in ("stop", "length"):
            raise UserError(f"engine {self._url} answered what is no completion: {str(answer)[:200]}")
        finished = choice.finish_reason == "stop"
        if answer.usage is not None:
            num_tokens = int(answer.usage.completion_tokens)
        else:
            num_tokens = len(self._tokenizer.encode(choice.text, add_special_tokens=False)) + finished
        return Continuation(choice.text, num_tokens, finished)

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
            names = [model.id for model in self._client.models.list()]
        except self._openai.APIStatusError as error:
            raise UserError(
                f"engine {self._url} does not list its models ({_reason(error)});"
                " say with --engine-model which is the base"
            ) from None
        except (self._openai.OpenAIError, ValueError) as error:
            raise self._failed(error) from None
        if len(names) != 1:
            raise UserError(
                f"engine {self._url} serves {', '.join(names) or 'no model'}; say with --engine-model which is the base"
            )
        return names[0]

    def _failed(self, error: Exception) -> UserError:
        """One line; what a server refuses is not tried again, what it fails at is."""
        status = getattr(error, "status_code", None)
        is_refusal = status is not None and status < 500 and status not in (408, 409, 429)
        happened = "refused" if is_refusal else f"failed after {MAX_RETRIES} retries"
        return UserError(
            f"engine {self._url} {happened} ({_reason(error)}); what is recorded is kept,"
            " and --resume goes on from there"
        )


def _generation_config(end_token_ids: list[int], sampling: dict[str, Any]) -> str:
    """What ``transformers serve`` takes in place of the checkpoint's habits, as JSON."""
    how = {"do_sample": True, **sampling} if sampling else {"do_sample": False}
    return json.dumps({"eos_token_id": end_token_ids, **how})


def _reason(error: Exception) -> str:
    """What the server said, or what became of the connection."""
    response = getattr(error, "response", None)
    said = f"{error} {response.text}" if response is not None and response.text not in str(error) else str(error)
    return " ".join(said.split())[:200] or type(error).__name__
