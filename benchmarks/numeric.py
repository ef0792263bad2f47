"""Measure the cost of scoring a grid of numbers, 0.0 to 5.0 by 0.1, after every prompt, as ratios to its rivals.

    uv run benchmarks/numeric.py --json results/numeric.json

    one_by_one    a forward pass for every number, of all prompts with it
    all_at_once   a forward pass for every prompt, of it with all numbers
    shared_cache  the prompts read once, then all numbers on repeats of their KV cache
    sampling      no scores: 32 answers a prompt drawn at T = 1, each as long as the longest number

For each, ours / its time, tokens read by the model (padding included) and peak memory. Contenders take turns, round by
round, so that a slow moment of the machine hits all of them; each ratio of times is taken within a round, and its
median and quartiles over the rounds are printed. Tokens are counted by a hook on the embedding. Memory is the most that
tensors held beyond weights and prompts at any moment: on a GPU what its allocator counted, on a CPU the running sum of
allocations and releases in PyTorch's profiler, which sees every tensor but no scratch space within a matrix product.

Weights and prompts are random: cost does not depend on them. The log-probabilities of all who score must agree, or
there are no figures. The embedded model's tokenizer writes the numbers: it needs no download, and as Qwen's and Gemma's
it spends a token on the space, the point and each digit, which is the most work a grid can be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.common.measure import peak_bytes, spread, timed
from reft_math.commands.run import run
from reft_math.errors import require
from reft_math.files.atomic import write_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

PEERS = ("one_by_one", "all_at_once", "shared_cache", "sampling")
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}  # nats; a wrong mask or position costs 0.1


@dataclass(frozen=True)
class NumericOptions:
    hidden_size: int = field(default=512, metadata={"help": "Hidden size of a Llama with heads of 64."})
    num_layers: int = field(default=8, metadata={"help": "Layers of the Llama."})
    vocabulary: int = field(default=32000, metadata={"help": "Vocabulary of the Llama."})
    dtype: Literal["float32", "bfloat16"] = field(default="float32", metadata={"help": "Weights' dtype."})
    batch_size: int = field(default=8, metadata={"help": "Prompts."})
    prompt_length: int = field(default=64, metadata={"help": "Tokens of the longest prompt; the shortest has half."})
    samples: int = field(default=32, metadata={"help": "Answers drawn per prompt."})
    rounds: int = field(default=5, metadata={"help": "Rounds that are timed, after passes that check and count."})
    json: str | None = field(default=None, metadata={"help": "File for the results."})

    def __post_init__(self) -> None:
        require(self, "hidden_size", lambda value: value >= 64 and value % 64 == 0, "a multiple of 64")
        for name in ("num_layers", "batch_size", "samples", "rounds"):
            require(self, name, lambda value: value >= 1, "at least 1")
        require(self, "prompt_length", lambda value: value >= 2, "at least 2")


class Contenders:
    """One model, one batch of prompts, one grid; scores are ``(batch, numbers)``."""

    def __init__(self, options: NumericOptions) -> None:
        import torch

        from reft_math.models import load_tokenizer
        from reft_math.regression.grid import evenly_spaced, make_grid, number_texts

        torch.manual_seed(0)
        self.options = options
        self.model = _model(options)
        self.input_ids, self.attention_mask = _prompts(options, self.model)
        self.tokenizer = load_tokenizer("arithmetic")
        self.grid = make_grid(self.tokenizer, number_texts(evenly_spaced(0, 5, "0.1")), prompt_suffix="Answer:")
        self.strings = torch.tensor(self.grid.token_ids, device=self.model.device)  # all of one length

    def all(self) -> dict[str, Callable[[], Any]]:
        return {"ours": self.ours, **{name: getattr(self, name) for name in PEERS}}

    def ours(self) -> torch.Tensor:
        from reft_math.regression.scores import grid_log_probs

        return grid_log_probs(self.model, self.input_ids, self.attention_mask, self.grid)

    def one_by_one(self) -> torch.Tensor:
        import torch

        rows = len(self.input_ids)
        scores = [self._scores(self.input_ids, self.attention_mask, string.expand(rows, -1)) for string in self.strings]
        return torch.stack(scores, dim=1)

    def all_at_once(self) -> torch.Tensor:
        import torch

        numbers = len(self.strings)
        prompts = [row[mask.bool()] for row, mask in zip(self.input_ids, self.attention_mask, strict=True)]
        batches = [prompt.expand(numbers, -1) for prompt in prompts]
        return torch.stack([self._scores(batch, torch.ones_like(batch), self.strings) for batch in batches])

    def shared_cache(self) -> torch.Tensor:
        import torch

        rows, numbers = len(self.input_ids), len(self.strings)
        positions = (self.attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        prompt = self.model(
            input_ids=self.input_ids, attention_mask=self.attention_mask, position_ids=positions, logits_to_keep=1
        )
        cache = prompt.past_key_values
        cache.batch_repeat_interleave(numbers)
        first = prompt.logits.repeat_interleave(numbers, dim=0)
        strings = self.strings.repeat(rows, 1)
        inputs = strings[:, :-1]
        mask = self.attention_mask.repeat_interleave(numbers, dim=0)
        mask = torch.cat([mask, torch.ones_like(inputs)], dim=1)
        positions = mask.cumsum(dim=1)[:, -inputs.shape[1] :] - 1
        rest = self.model(input_ids=inputs, attention_mask=mask, position_ids=positions, past_key_values=cache).logits
        return _summed(torch.cat([first, rest], dim=1), strings).view(rows, numbers)

    def sampling(self) -> list[list[str]]:
        from reft_math.regression.sampling import write_numbers

        return write_numbers(
            self.model,
            self.tokenizer,
            self.input_ids,
            self.attention_mask,
            end_token_ids=[],
            max_new_tokens=self.strings.shape[1],
            samples=self.options.samples,
            temperature=1.0,
        )

    def _scores(self, prompts: torch.Tensor, mask: torch.Tensor, strings: torch.Tensor) -> torch.Tensor:
        """One plain forward pass: prompts and strings, row by row."""
        import torch

        inputs = torch.cat([prompts, strings[:, :-1]], dim=1)
        mask = torch.cat([mask, torch.ones_like(strings[:, :-1])], dim=1)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        logits = self.model(
            input_ids=inputs,
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=strings.shape[1],
        ).logits
        return _summed(logits, strings)


def _summed(logits: torch.Tensor, strings: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of ``(rows, longest)`` tokens, from the logits that predict each, summed over a row."""
    return logits.float().log_softmax(dim=-1).gather(-1, strings[..., None])[..., 0].sum(dim=1)


def _model(options: NumericOptions) -> PreTrainedModel:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=options.hidden_size,
        intermediate_size=options.hidden_size * 8 // 3,
        num_hidden_layers=options.num_layers,
        num_attention_heads=options.hidden_size // 64,
        vocab_size=options.vocabulary,
        max_position_embeddings=8192,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM._from_config(config, dtype=getattr(torch, options.dtype)).eval()
    model.generation_config = GenerationConfig()  # no end token: every answer runs on
    return model


def _prompts(options: NumericOptions, model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens, padded on the left."""
    import torch

    lengths = torch.linspace(options.prompt_length, options.prompt_length // 2, options.batch_size).long()
    columns = torch.arange(options.prompt_length)
    attention = (columns[None] >= options.prompt_length - lengths[:, None]).long()
    ids = torch.randint(3, model.config.vocab_size, attention.shape) * attention
    return ids.to(model.device), attention.to(model.device)


def check_agreement(contenders: Contenders) -> dict[str, float]:
    """The largest difference of each peer's log-probabilities from ours, in nats.

    Raises:
        RuntimeError: One is beyond rounding: at least one contender computes something else.
    """
    ours = contenders.ours()
    differences = {}
    for name in PEERS[:-1]:  # samples are no scores
        differences[name] = float((contenders.all()[name]() - ours).abs().max())
        if not differences[name] <= TOLERANCE[contenders.options.dtype]:
            raise RuntimeError(f"log-probabilities by {name} differ from ours by up to {differences[name]:.3g} nats")
    return differences


def tokens_read(model: PreTrainedModel, contender: Callable[[], Any]) -> int:
    """Tokens that went through the model's embedding."""
    counts: list[int] = []
    handle = model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: counts.append(args[0].numel())
    )
    try:
        contender()
    finally:
        handle.remove()
    return sum(counts)


def time_ratios(rounds: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Ours over each peer's seconds, taken within rounds."""
    return {name: spread([row["ours"] / row[name] for row in rounds]) for name in PEERS}


def main(options: NumericOptions) -> None:
    import torch

    from reft_math.commands.progress import progress
    from reft_math.commands.provenance import provenance
    from reft_math.files.tables import print_table

    contenders = Contenders(options)
    by_name = contenders.all()
    with torch.no_grad():
        differences = check_agreement(contenders)
        tokens = {name: tokens_read(contenders.model, contender) for name, contender in by_name.items()}
        peaks = {name: peak_bytes(contender) for name, contender in by_name.items()}
        rounds = [
            {name: timed(contender) for name, contender in by_name.items()}
            for _ in progress(range(options.rounds), name="measuring", unit="round")
        ]
    times = time_ratios(rounds)
    found = {f"time_vs_{name}": times[name]["median"] for name in PEERS}
    found |= {f"tokens_vs_{name}": tokens["ours"] / tokens[name] for name in PEERS}
    found |= {f"memory_vs_{name}": peaks["ours"] / peaks[name] for name in PEERS}
    rows = [
        [
            name,
            f"{times[name]['median']:.3f}",
            f"{times[name]['lower_quartile']:.3f} - {times[name]['upper_quartile']:.3f}",
            f"{found[f'tokens_vs_{name}']:.3f}",
            f"{found[f'memory_vs_{name}']:.3f}",
            f"{differences[name]:.1e}" if name in differences else "-",
        ]
        for name in PEERS
    ]
    title = (
        f"{len(contenders.grid)} numbers, hidden size {options.hidden_size}, {options.num_layers} layers,"
        f" {options.dtype}, batch {options.batch_size}, prompts of {options.prompt_length}, {options.samples} samples"
    )
    print_table(title, ("ours /", "time", "quartiles", "tokens", "peak memory", "largest difference"), rows)
    if options.json is not None:
        seconds = {name: spread([row[name] for row in rounds]) for name in by_name}
        report = {**provenance(options), **found, "time_ratios": times, "seconds": seconds}
        report |= {"tokens_read": tokens, "peak_bytes": peaks, "largest_difference": differences}
        path = Path(options.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, report)


if __name__ == "__main__":
    run(main, NumericOptions, __doc__)
