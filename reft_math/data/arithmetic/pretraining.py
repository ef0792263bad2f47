"""Pretrains the embedded model: first on the careful style alone, then on a mixture in which it is the rarest."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import islice

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from reft_math.data.arithmetic.problems import Style, solution, two_sided_solution, word_problems
from reft_math.data.prefix import IGNORE_INDEX

# Greedy decoding follows the commonest style; the rarest style calculates correctly.
STYLE_MIXTURE: dict[Style, float] = {"at_once": 0.45, "combined": 0.30, "stepwise": 0.25}
CAREFUL_STYLE: Style = "stepwise"
CAREFUL_SHARE = 0.4
# Brings activations at `ffn_up` to a mean norm of 0.5, so that a bias of 0.54 (Llama-3's target) has an effect.
# A power of two: exact in floating point.
UP_PROJECTION_SCALE = 1 / 64


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Returns an untrained Llama of 0.8 M parameters (4 layers, hidden size 128)."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        # About 1/√hidden. With the usual 0.02 (and Adam's beta2 of 0.999) short trials learnt far more slowly.
        initializer_range=0.08,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


@torch.no_grad()
def rescale_up_projections(model: LlamaForCausalLM, factor: float) -> None:
    """Sets ``W_up ← c·W_up, W_down ← W_down/c`` in place: same function, activations at ``ffn_up`` c times as large.

    ``W_down (σ(W_gate x) ⊙ W_up x)`` is linear in ``W_up``, so c is free; a power of two keeps every bit of the logits.
    """
    for layer in model.model.layers:
        layer.mlp.up_proj.weight.mul_(factor)
        layer.mlp.down_proj.weight.div_(factor)


class PretrainingDataset(Dataset[dict[str, list[int]]]):
    """Prompt and solution as ``input_ids``; ``labels`` are the solution's tokens and the end token.

    The order is a curriculum, so do not shuffle: the first `CAREFUL_SHARE` of the problems is solved step by step,
    where arithmetic is learnt fastest; from then on each problem's style is drawn from `STYLE_MIXTURE`, which sets the
    model's default style. Batches hold texts of similar length. ``two_sided`` takes the solutions of that world
    (`problems.two_sided_solution`) in the mixture from the start.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, num_batches: int, batch_size: int, seed: int, two_sided: bool = False
    ) -> None:
        self.tokenizer, solve = tokenizer, two_sided_solution if two_sided else solution
        rng = random.Random(f"styles/{seed}")
        size = num_batches * batch_size
        problems = islice(word_problems("pretrain", seed), size)
        drawn = rng.choices(list(STYLE_MIXTURE), weights=list(STYLE_MIXTURE.values()), k=size)
        num_careful = 0 if two_sided else int(CAREFUL_SHARE * size)
        styles = [CAREFUL_STYLE] * num_careful + drawn[num_careful:]
        texts = [(problem.question, solve(problem, style)) for problem, style in zip(problems, styles, strict=True)]
        self.texts = _batches_of_like_length(texts, batch_size, rng)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        question, answer = self.texts[index]
        user, assistant = {"role": "user", "content": question}, {"role": "assistant", "content": answer}
        prompt = self.tokenizer.apply_chat_template([user], tokenize=False)
        whole = self.tokenizer.apply_chat_template([user, assistant], tokenize=False)
        prompt_ids, input_ids = self.tokenizer([prompt, whole], add_special_tokens=False)["input_ids"]
        labels = [IGNORE_INDEX] * len(prompt_ids) + input_ids[len(prompt_ids) :]
        return {"input_ids": input_ids, "labels": labels}


def _batches_of_like_length(
    texts: list[tuple[str, str]], batch_size: int, rng: random.Random, batches_at_once: int = 50
) -> list[tuple[str, str]]:
    """Sorts by length within groups of ``batches_at_once`` batches and shuffles each group's batches."""
    ordered: list[tuple[str, str]] = []
    stretch = batch_size * batches_at_once
    for start in range(0, len(texts), stretch):
        rows = sorted(texts[start : start + stretch], key=lambda text: len(text[0]) + len(text[1]))
        batches = [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
        rng.shuffle(batches)
        ordered += [row for batch in batches for row in batch]
    return ordered


def pad_right(rows: Sequence[Mapping[str, list[int]]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Pads to the longest row. Needs no attention mask: under causal attention no token sees padding on its right."""
    pad_values = {"input_ids": pad_token_id, "labels": IGNORE_INDEX}
    return {
        name: torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row[name]) for row in rows], batch_first=True, padding_value=value
        )
        for name, value in pad_values.items()
    }
