"""Provides lm-eval with the base and an adapter's interventions under a gate, as model ``reft_math``.

Importing this module registers it; afterwards ``lm_eval.simple_evaluate(model="reft_math", model_args={…})`` knows it.
"""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch.nn.utils import parametrize

from interventions.gates import TokenGate, parse_gate
from interventions.generation import Handoff, acting_positions, gated_generate
from reft_math.commands.options.evaluation import ModelOptions
from reft_math.commands.options.loading import Attention, DeviceMap, Dtype, Quantization
from reft_math.commands.processes import process_state
from reft_math.commands.progress import progress
from reft_math.data.templates import THOUGHT_END, framed
from reft_math.decoding.teacher_forcing import ForcedText, gated_logits
from reft_math.errors import UserError
from reft_math.models.adapter_files import weights_sha256
from reft_math.scoring.context import load_setting

Request = tuple[tuple[str, str] | None, list[int], list[int]]
Answer = tuple[float, bool]


@register_model("reft_math")
class ReftMathLM(HFLM):  # type: ignore[misc]
    """``HFLM`` whose model has interventions while a gate is open.

    Without an adapter, and with gate ``off``, every number is HFLM's own. Otherwise:

    - a generation is drawn as by `PrefixReftModel.generate`: row by row from the intervened model until the row's gate
      closes, then from the base;
    - ``log p(y | x) = Σ_t log p(y_t | x, y_<t)`` is the probability with which such decoding would draw the
      continuation: the gate's rule runs along ``y``, tokens before its closing position have the intervened model's
      probabilities, the others the base's (`gated_logits`). ``is_greedy`` says whether each token is that decoder's
      likeliest. If lm-eval scores a whole text, each of its windows is a continuation with its own gate. A window's
      context is the start token or the token before it; the last window's is as long as fits.

    Interventions treat lm-eval's context as a prompt, and continuation or generation as generated tokens. Penalties and
    sampling settings in the checkpoint's generation configuration are ignored, as everywhere in reft-math.

    Args:
        pretrained: The base: hub id, folder or ``arithmetic``; the adapter's own by default.
        adapter: Folder or hub id; None for the base alone.
        gate: Gate as text; by default the adapter's own. A gate with a comma needs ``model_args`` as a dictionary.
        handoff: Cache to continue from once the gate has closed.
        gguf_file, revision, dtype, quantization, device_map, attn_implementation: How to load the base.
        batch_size: Requests per batch.
        device: Ignored; the model is on its process's device.
        max_batch_size: Ignored; lm-eval's bound on automatic batch sizes.
        max_length: Tokens of context and continuation together; by default the model's.
        add_bos_token: Whether prompts get a start token; by default as the tokenizer does.
        enable_thinking, think_end_token, chat_template_args: As in HFLM; with an adapter, thinking follows by default
            its template.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        adapter: str | None = None,
        gate: str | None = None,
        handoff: Handoff = "base",
        gguf_file: str | None = None,
        revision: str | None = None,
        dtype: Dtype = "auto",
        quantization: Quantization | None = None,
        device_map: DeviceMap | None = None,
        attn_implementation: Attention | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        enable_thinking: bool | None = None,
        think_end_token: str | int | None = None,
        chat_template_args: dict[str, Any] | None = None,
    ) -> None:
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"batch_size must be a whole number of at least 1; got {batch_size!r}")
        options = ModelOptions(
            model=pretrained,
            adapter=adapter,
            gate=gate,
            handoff=handoff,
            gguf_file=gguf_file,
            revision=revision,
            dtype=dtype,
            quantization=quantization,
            device_map=device_map,
            attn_implementation=attn_implementation,
        )
        self.setting = load_setting(options, "")  # lm-eval's tasks set the length of completions
        self.gate = parse_gate(str(self.setting.options.gate))
        # The interventions, if the gate ever opens.
        self.reft_model = None if self.gate == TokenGate(0) else self.setting.reft_model
        if self.reft_model is not None:
            acting_positions(self.gate, self.reft_model)  # raises if the two do not go together
            if enable_thinking is None and self.setting.decoding.template.is_chat:
                enable_thinking = self.setting.decoding.template.is_thinking
                think_end_token = think_end_token or (THOUGHT_END if enable_thinking else None)
        with _quiet(logging.getLogger(HFLM.__module__)):  # warns: the model is loaded already
            super().__init__(
                pretrained=self.setting.model,
                tokenizer=self.setting.decoding.tokenizer,
                revision=self.setting.options.revision or "main",
                batch_size=int(batch_size),
                max_length=max_length,
                add_bos_token=add_bos_token,
                enable_thinking=enable_thinking,
                think_end_token=think_end_token,
                chat_template_args=chat_template_args,
            )
        self.stops = self._stops()
        if (state := process_state()).num_processes > 1:  # HFLM does not do this for a loaded model
            self.accelerator = Accelerator()
            self._rank, self._world_size = state.process_index, state.num_processes

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Applies the template like HFLM, but with the date of our prompts, and checks that all contents are there."""
        settings = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        settings |= self.chat_template_args
        try:
            return framed(chat_history, self.tokenizer, **settings)
        except UserError:
            rest = [message for message in chat_history if message["role"] != "system"]
            if len(rest) == len(chat_history):
                raise
            warnings.warn("the chat template takes no system message; it is left out", stacklevel=2)
            return framed(rest, self.tokenizer, **settings)

    def unlike_training(self, prompts: Iterable[str]) -> int | None:
        """Counts non-empty prompts that are not framed by the template of the adapter's training.

        Few-shot examples, a system message, another instruction, and applying a chat template differently from training
        all count. None if no adapter acts, or its training template is unknown.
        """
        adapter = self.setting.adapter
        if self.reft_model is None or adapter is None or adapter.template is None:
            return None
        template, tokenizer = self.setting.decoding.template, self.tokenizer
        return sum(not template.has_framed(prompt, tokenizer) for prompt in prompts if prompt)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        self._warn_of_prompts(requests)
        return super().generate_until(requests, disable_tqdm)  # type: ignore[no-any-return]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Answer]:
        self._warn_of_prompts(requests)
        return super().loglikelihood(requests, disable_tqdm)  # type: ignore[no-any-return]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Runs HFLM's as if in one process: it would wait forever for a process that already has all its answers."""
        world_size, self._world_size = self._world_size, 1
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm)  # type: ignore[no-any-return]
        finally:
            self._world_size = world_size

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Refuses cached answers of another base, adapter or gate, which lm-eval's keys do not distinguish.

        The base is identified by name and commit: reading its weights would take too long.
        """
        answers = cache_hook.dbdict
        if answers is not None:
            stamp = {
                **dataclasses.asdict(self.setting.options),
                "commit": getattr(self.model.config, "_commit_hash", None),
                "max_length": self.max_length,
                "add_bos_token": self.add_bos_token,
                "think_end_token": self.think_end_token,
                "adapter": None if self.reft_model is None else weights_sha256(self.reft_model.interventions),
                "adapter_config": None
                if self.reft_model is None
                else dataclasses.asdict(self.reft_model.prefix_config),
            }
            if answers.get("reft_math", stamp if len(answers) == 0 else None) != stamp:
                raise UserError("use_cache holds answers of another model, adapter or gate: take another path for it")
            answers["reft_math"] = stamp
        super().set_cache_hook(cache_hook)

    def get_model_info(self) -> dict[str, Any]:
        """Returns HFLM's information with reft-math's; lm-eval writes it beside its results."""
        options = self.setting.options
        return {
            **super().get_model_info(),
            "adapter": options.adapter,
            "gate": options.gate,
            "handoff": options.handoff,
            "adapter_template": None if self.setting.adapter is None else self.setting.adapter.template,
        }

    def _stops(self) -> list[str]:
        """Returns texts that stop evaluations. An end-of-turn token that is not special would stay in the text."""
        decoding, added = self.setting.decoding, self.tokenizer.added_tokens_decoder
        ends = [str(added[token]) for token in decoding.end_token_ids if token in added]
        return [*decoding.stops, *ends]

    def _warn_of_prompts(self, requests: Sequence[Instance]) -> None:
        prompts = {request.args[0] for request in requests if request.args[0]}
        if unlike := self.unlike_training(prompts):
            warnings.warn(
                f"{unlike} of {len(prompts)} prompts are not framed as the adapter's training prompts were (template"
                f" {self.setting.decoding.template}): mind the chat template, few-shot examples and system messages",
                stacklevel=3,
            )

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **generation_kwargs: Any
    ) -> torch.Tensor:
        if self.reft_model is not None:
            generation_kwargs["custom_generate"] = partial(
                gated_generate,
                interventions=self.reft_model,
                gate=self.gate,
                handoff=self.setting.options.handoff,
            )
        stop += [
            text for text in self.stops if text not in stop
        ]  # HFLM cuts the answer at these texts before keeping it
        with parametrize.cached():  # computes LoReFT's R once per generation
            generated: torch.Tensor = super()._model_generate(context, max_length, stop, **generation_kwargs)
        return generated

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        if self.reft_model is None:
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)  # type: ignore[no-any-return]
        # The last token is not read, so choices of one token share their forward pass.
        sharing: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = defaultdict(list)
        for index, (_, context, continuation) in enumerate(requests):
            sharing[tuple(context), tuple(continuation[:-1])].append(index)
        groups = sorted(sharing.values(), key=lambda group: -len(requests[group[0]][1] + requests[group[0]][2]))
        answers: list[Answer | None] = [None] * len(requests)
        size = override_bs or self.batch_size
        starts = range(0, len(groups), size)
        for start in starts if disable_tqdm else progress(starts, name="log-likelihoods", unit="batch"):
            batch = groups[start : start + size]
            for group, logits in zip(batch, self._logits([requests[group[0]] for group in batch]), strict=True):
                for index in group:
                    name, _, continuation = requests[index]
                    answers[index] = answer = _answer(logits, continuation)
                    if name is not None:
                        self.cache_hook.add_partial("loglikelihood", name, answer)
        return [answer for answer in answers if answer is not None]

    def _logits(self, requests: Sequence[Request]) -> list[torch.Tensor]:
        """Returns raw logits ``(token, vocabulary)`` from which gated decoding would draw each continuation."""
        texts = []
        for _, context, continuation in requests:
            room = self.max_length + 1 - len(continuation)  # the last token is not read
            if room < 1:
                raise UserError(
                    f"a continuation of {len(continuation)} tokens is longer than the model's {self.max_length}; raise"
                    " max_length, or take another task"
                )
            if len(context) > room:
                warnings.warn(f"contexts with no room in {self.max_length} tokens lose their start", stacklevel=2)
            texts.append(ForcedText("", torch.tensor(context[-room:]), continuation))
        assert self.reft_model is not None  # otherwise HFLM's own code runs
        with parametrize.cached():
            found = gated_logits(
                self.model,
                self.reft_model,
                self.gate,
                self.setting.options.handoff,
                texts,
                int(self.tokenizer.pad_token_id),
            )
            return list(found)


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Silences the logger below errors."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _answer(logits: torch.Tensor, continuation: Sequence[int]) -> Answer:
    """Returns ``Σ_t log softmax(f_t)[y_t]``, in float32 or better, and whether each ``y_t`` is the likeliest token."""
    tokens = torch.tensor(continuation, device=logits.device)
    log_probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
    chosen = log_probabilities.gather(1, tokens[:, None]).sum()
    return float(chosen), bool((logits.argmax(dim=-1) == tokens).all())
