"""Measure the cost of prefix training: problems per second and peak memory against its peers, one model, one run.

    uv run benchmarks/train.py --data-dir ../shared/data --json results/train.json

RED on every layer, K = 10, float32, on GSM8K's own lengths: a byte-level BPE is trained on its problems, the weights of
the Llama are random; or a real model (``--model``). Contenders take turns, round by round, so that a slow moment of the
machine hits all of them; ratios are taken within a round, medians and quartiles over the rounds.

    ours         `PrefixTrainer`: prompts and K tokens, logits at the targets only, the bias norm projected
    padded512    the published recipe: whole solutions, every row padded to 512 tokens, labels masked after K tokens
    pyreft       stock pyreft: its model, its trainer, whole solutions padded to the longest of a batch
    lora         peft's LoRA of as many parameters, transformers' trainer, whole solutions padded as pyreft's
    limit        a plain forward and backward pass over our batches, without interventions, optimiser or trainer

``vs_…`` is problems a second, ours over theirs; ``memory_vs_…`` the most that tensors held at any moment, weights
included, ours over theirs (on a GPU by its allocator, on a CPU by the running sum of PyTorch's profiler). Seconds are
those between the first step's beginning and the last one's end; a trainer's start and end are left out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.common.measure import (
    SHAPES,
    Dtype,
    Shape,
    matrix_peak,
    operations,
    peak_bytes,
    random_llama,
    sharing,
    spread,
    step_clock,
    timed,
    training_arguments,
)
from reft_math.commands.options.loading import LoadingOptions
from reft_math.commands.run import run
from reft_math.errors import require
from reft_math.files.atomic import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer

    from reft_math.data.problem import Problem

PEERS = ("padded512", "pyreft", "lora", "limit")
PADDED = 512


@dataclass(frozen=True)
class TrainBenchmarkOptions:
    model: str | None = field(
        default=None, metadata={"help": "Base: hub id or folder (a Llama of --shape with random weights)."}
    )
    dataset: Literal["gsm8k", "arithmetic"] = field(
        default="gsm8k", metadata={"help": "Data set of the lengths; arithmetic is the embedded world's."}
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder with <dataset>/<split>.jsonl instead of the hub."}
    )
    shape: Shape = field(default="small", metadata={"help": "Llama of hidden size 64, 256 or 512, or like Llama 3's."})
    dtype: Dtype = field(default="float32", metadata={"help": "Dtype of the base's weights."})
    intervention: Literal["red", "bias", "loreft"] = field(default="red", metadata={"help": "Kind of intervention."})
    k: int = field(default=10, metadata={"help": "Solution tokens that ours and padded512 train on."})
    batch_size: int = field(default=16, metadata={"help": "Problems per batch."})
    steps: int = field(default=8, metadata={"help": "Batches per round."})
    rounds: int = field(default=5, metadata={"help": "Timed rounds, each after one warm-up step."})
    peers: list[str] = field(default_factory=lambda: [*PEERS], metadata={"help": "Contenders beside ours (all)."})
    json: str | None = field(default=None, metadata={"help": "File for the results."})

    def __post_init__(self) -> None:
        for name in ("k", "batch_size", "steps", "rounds"):
            require(self, name, lambda value: value >= 1, "at least 1")
        require(self, "peers", lambda value: not set(value) - set(PEERS), f"among {', '.join(PEERS)}")


class Contenders:
    """One set of weights, frozen, in a model for each contender; problems as each of them reads them.

    Args:
        options: The command's options.
    """

    def __init__(self, options: TrainBenchmarkOptions) -> None:
        import pyreft

        from interventions import PrefixReftConfig, get_prefix_reft_model
        from reft_math.data.prefix import PrefixDataset
        from reft_math.data.registry import load_problems
        from reft_math.data.templates import get_template
        from reft_math.models import load_model, load_tokenizer

        self.options = options
        count = options.batch_size * options.steps
        problems = load_problems(options.dataset, "train", data_dir=options.data_dir)
        model, shape = options.model, SHAPES[options.shape]
        if model is None:
            self.tokenizer = train_tokenizer(problems, shape["vocab_size"])
            self.base = random_llama(shape, options.dtype)
        else:
            self.tokenizer = load_tokenizer(model)
            self.base = load_model(model, loading=LoadingOptions(dtype=options.dtype)).requires_grad_(False)
        self.base.train()
        self.template = get_template("plain" if model is None else "auto", self.tokenizer)
        self.prefixes = PrefixDataset(problems[:count], self.tokenizer, self.template, options.k)
        self.solutions = PrefixDataset(problems[:count], self.tokenizer, self.template, None)
        config = PrefixReftConfig(
            intervention=options.intervention, site="block" if options.intervention == "loreft" else "ffn_up"
        )
        self.ours = get_prefix_reft_model(sharing(self.base), config)
        self.padded = get_prefix_reft_model(sharing(self.base), config)
        with tempfile.TemporaryDirectory() as folder:
            self.ours.save_pretrained(folder)
            self.pyreft = pyreft.ReftModel.load(folder, sharing(self.base))
        self.pyreft.set_device(self.base.device)
        if "lora" in options.peers:
            self.lora = self._matched_lora()

    def _matched_lora(self) -> Any:
        """peft's, with as many parameters as ours."""
        from peft import LoraConfig, get_peft_model

        from reft_math.training.matching import match_parameters

        modules, rank = match_parameters(self.base, sum(parameter.numel() for parameter in self.ours.parameters()))
        lora = LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules=modules.split(","))
        return get_peft_model(sharing(self.base), lora)

    def mean_lengths(self) -> tuple[float, float]:
        """Tokens of prompts and of whole solutions."""
        rows = self.solutions.rows
        prompts, solutions = (sum(len(row[part]) for row in rows) for part in ("prompt_ids", "target_ids"))
        return prompts / len(rows), solutions / len(rows)

    def seconds(self, name: str, steps: int) -> float:
        """Seconds of that many optimiser steps."""
        if name == "limit":
            return self._limit(steps)
        from transformers import PrinterCallback

        clock = step_clock()
        trainer = getattr(self, f"_{name}_trainer")(steps)
        trainer.add_callback(clock)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return float(clock.end - clock.start)

    def _ours_trainer(self, steps: int) -> Trainer:
        from reft_math.training.norm_control import ProjectionController
        from reft_math.training.trainer import NormControl, PrefixTrainer

        return PrefixTrainer(
            model=self.ours,
            args=training_arguments(steps, self.options.batch_size),
            train_dataset=self.prefixes,
            data_collator=self._collator(),
            norm_control=NormControl(self.ours, ProjectionController(0.54), target_scale_norm=None),
        )

    def _padded512_trainer(self, steps: int) -> Trainer:
        return self._stock_trainer(steps, self.padded, partial(self._labelled, k=self.options.k, length=PADDED))

    def _pyreft_trainer(self, steps: int) -> Trainer:
        import pyreft

        class CurrentReftTrainer(pyreft.ReftTrainerForCausalLM):
            """pyreft's, for a transformers whose trainer passes one argument more."""

            def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
                return super().compute_loss(model, inputs, return_outputs)

        return self._stock_trainer(steps, self.pyreft, self._labelled, CurrentReftTrainer)

    def _lora_trainer(self, steps: int) -> Trainer:
        return self._stock_trainer(steps, self.lora, self._labelled)

    def _stock_trainer(self, steps: int, model: Any, collate: Any, trainer_class: Any = None) -> Trainer:
        from transformers import Trainer

        return (trainer_class or Trainer)(  # type: ignore[no-any-return]
            model=model,
            args=training_arguments(steps, self.options.batch_size),
            train_dataset=self.solutions,
            data_collator=collate,
        )

    def _limit(self, steps: int) -> float:
        """The seconds of our batches without anything of ours."""
        from reft_math.training.loss import sequence_cross_entropy
        from reft_math.training.packing import logits_at

        loader = self._ours_trainer(steps).get_train_dataloader()
        embed = self.base.get_input_embeddings()

        def passes() -> None:
            for _, batch in zip(range(steps), loader, strict=False):
                targets, places = batch.pop("targets"), batch.pop("logits_at")
                embedded = embed(batch.pop("input_ids")).requires_grad_()
                with logits_at(self.base, places):
                    logits = self.base(inputs_embeds=embedded, **batch, use_cache=False).logits
                sequence_cross_entropy(logits, targets).mean().backward()

        return timed(passes)

    def _collator(self) -> Any:
        from reft_math.data.prefix import PrefixCollator

        return PrefixCollator(int(self.tokenizer.pad_token_id), "all")

    def _labelled(self, rows: Sequence[Mapping[str, Any]], k: int | None = None, length: int | None = None) -> Any:
        """Whole solutions as stock trainers read them: padded on the right, labels of the first k solution tokens.

        Args:
            rows: Of a `PrefixDataset` of whole solutions.
            k: None for all.
            length: To pad to; None for the longest row.
        """
        import torch

        from reft_math.data.prefix import IGNORE_INDEX

        width = length or max(len(row["prompt_ids"]) + len(row["target_ids"]) for row in rows)
        shape = (len(rows), width)
        ids = torch.full(shape, int(self.tokenizer.pad_token_id))
        labels, mask = torch.full(shape, IGNORE_INDEX), torch.zeros(shape, dtype=torch.long)
        for i, row in enumerate(rows):
            tokens = torch.tensor([*row["prompt_ids"], *row["target_ids"]][:width])
            start = len(row["prompt_ids"])
            ids[i, : len(tokens)], mask[i, : len(tokens)] = tokens, 1
            end = len(tokens) if k is None else min(start + k, len(tokens))
            labels[i, start:end] = tokens[start:end]
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def train_tokenizer(problems: Sequence[Problem], vocabulary: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE over the problems' own text."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = ByteLevelBPETokenizer()
    texts = (text for problem in problems for text in (problem.question, problem.solution or ""))
    tokenizer.train_from_iterator(texts, vocabulary, special_tokens=["<pad>", "<eos>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, pad_token="<pad>", eos_token="<eos>")


def speed_ratios(rounds: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Ours over each peer's problems a second, that is their seconds over ours, taken within rounds."""
    return {name: spread([row[name] / row["ours"] for row in rounds]) for name in PEERS if name in rounds[0]}


def main(options: TrainBenchmarkOptions) -> None:
    from reft_math.commands.progress import progress
    from reft_math.commands.provenance import provenance
    from reft_math.files.tables import print_table

    contenders, names = Contenders(options), ("ours", *options.peers)
    for name in names:
        contenders.seconds(name, steps=1)  # warms up
    rounds = [
        {name: contenders.seconds(name, options.steps) for name in names}
        for _ in progress(range(options.rounds), name="measuring", unit="round")
    ]
    weights = sum(parameter.nbytes for parameter in contenders.base.parameters())
    peaks = {name: weights + peak_bytes(partial(contenders.seconds, name, options.steps)) for name in names}
    counted, peak = operations(partial(contenders.seconds, "ours", options.steps)), matrix_peak(options.dtype)
    share = counted / spread([row["ours"] for row in rounds])["median"] / peak
    ratios = speed_ratios(rounds)
    problems = options.batch_size * options.steps
    speeds = {name: spread([problems / row[name] for row in rounds]) for name in names}
    memory = {name: peaks["ours"] / peaks[name] for name in options.peers}
    rows = [
        [
            name,
            f"{ratios[name]['median']:.2f}",
            f"{ratios[name]['lower_quartile']:.2f} - {ratios[name]['upper_quartile']:.2f}",
            f"{memory[name]:.3f}",
            f"{speeds[name]['median']:.1f}",
            f"{peaks[name] / 2**20:,.0f}",
        ]
        for name in options.peers
    ]
    rows.append(["ours", "-", "-", "-", f"{speeds['ours']['median']:.1f}", f"{peaks['ours'] / 2**20:,.0f}"])
    prompts, solutions = contenders.mean_lengths()
    title = (
        f"{options.dataset}, prompts of {prompts:.0f} and solutions of {solutions:.0f} tokens, K = {options.k},"
        f" {options.model or options.shape}, {options.intervention}, {options.dtype}, batch {options.batch_size}"
    )
    print_table(title, ("ours /", "problems/s", "quartiles", "peak memory", "its problems/s", "its MiB"), rows)
    tokens = speeds["ours"]["median"] * (prompts + options.k - 1)
    print(f"ours: {tokens:,.0f} tokens/s, {share:.0%} of the {peak / 1e9:,.0f} billion operations/s of a large product")
    if options.json is not None:
        report = {
            **provenance(options),
            **{f"vs_{name}": ratio["median"] for name, ratio in ratios.items()},
            **{f"memory_vs_{name}": share for name, share in memory.items()},
            "ratios": ratios,
            "problems_a_second": speeds,
            "peak_bytes": peaks,
            "tokens_a_second": tokens,
            "operations": counted,
            "matrix_peak": peak,
            "share_of_matrix_peak": share,
            "mean_prompt_tokens": prompts,
            "mean_solution_tokens": solutions,
        }
        path = Path(options.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, report)


if __name__ == "__main__":
    run(main, TrainBenchmarkOptions, __doc__)
