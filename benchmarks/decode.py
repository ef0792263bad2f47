"""Measure the cost of gated decoding: one model, one run, ratios to plain decoding and to its rivals.

    uv run benchmarks/decode.py --json results/decode.json

Contenders take turns, round by round, so that a slow moment of the machine hits all of them; each ratio is taken within
a round, and its median and quartiles over the rounds are printed. Weights are random: speed does not depend on them.

    vs_base                ours / plain ``generate`` of the base, the same number of new tokens
    vs_pyvene              ours / stock pyvene's ``generate`` with the interventions on every token
    vs_two_generations     ours / two whole generations, base and intervened (pyvene's ``output_original_output=True``)
    vs_uncached            ours / a KL loop that reads both sequences anew at every step, over the open tokens only
    after_closing_vs_base  time a token once all gates have closed / the base's at the same positions

and the bytes of the KV cache, ours / the base's at the same token: ``cache_while_open_vs_base`` (the most) and
``cache_after_closing_vs_base``. ``after_closing_vs_floor`` is time a token once all gates have closed / the least that
the machine could take: every weight read once at its measured bandwidth, or multiplied at its measured peak, whichever
is longer. ``--cache static`` is base's and ours; on a GPU transformers then captures a token's step as a CUDA graph.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.common.measure import (
    SHAPES,
    Dtype,
    Shape,
    matrix_peak,
    random_llama,
    read_peak,
    sharing,
    spread,
    timed,
    wait,
)
from reft_math.commands.run import run
from reft_math.errors import require
from reft_math.files.atomic import write_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from interventions.gates import KLGate

END_OF_OPEN = 16  # the gate is closed by this token
RATIOS = {
    "vs_base": ("ours", "base"),
    "vs_pyvene": ("ours", "pyvene"),
    "vs_two_generations": ("ours", "two_generations"),
    "vs_uncached": ("ours_while_open", "uncached"),
    "after_closing_vs_base": ("ours_after_closing", "base_after_closing"),
}


@dataclass(frozen=True)
class DecodeOptions:
    shape: Shape = field(default="medium", metadata={"help": "Llama of hidden size 64, 256 or 512, or like Llama 3's."})
    dtype: Dtype = field(default="float32", metadata={"help": "Dtype of the base's weights."})
    intervention: Literal["red", "bias", "loreft"] = field(default="red", metadata={"help": "Kind of intervention."})
    positions: Literal["all", "solution", "generated"] = field(
        default="all", metadata={"help": "Tokens to act on; with generated, the prompt is read once for both models."}
    )
    batch_size: int = field(default=8, metadata={"help": "Rows."})
    prompt_length: int = field(default=64, metadata={"help": "Tokens of the longest prompt; the shortest has half."})
    new_tokens: int = field(default=256, metadata={"help": "Tokens drawn in every row."})
    cache: Literal["dynamic", "static"] = field(default="dynamic", metadata={"help": "KV cache of base and ours."})
    ratios: list[str] = field(default_factory=lambda: [*RATIOS], metadata={"help": "Ratios to measure (all)."})
    rounds: int = field(default=5, metadata={"help": "Measured rounds, after one warm-up round."})
    json: str | None = field(default=None, metadata={"help": "File for the results."})

    def __post_init__(self) -> None:
        for name in ("batch_size", "rounds"):
            require(self, name, lambda value: value >= 1, "at least 1")
        require(self, "prompt_length", lambda value: value >= 2, "at least 2")
        require(self, "new_tokens", lambda value: value > 2 * END_OF_OPEN, f"more than {2 * END_OF_OPEN}")
        require(self, "ratios", lambda value: not set(value) - set(RATIOS), f"among {', '.join(RATIOS)}")


class Clock:
    """A stopping criterion that never stops and notes when each token was there, in seconds."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        import torch

        wait()
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def median_step(self, first: int) -> float:
        """Returns the median time of a token from number ``first`` on."""
        return statistics.median(after - before for before, after in pairwise(self.times[first:]))


class Contenders:
    """One set of weights in three models: plain, hooked by stock pyvene, and ours."""

    def __init__(self, options: DecodeOptions) -> None:
        import pyreft
        import torch
        from transformers import GenerationConfig

        from interventions import PrefixReftConfig, get_prefix_reft_model

        self.options = options
        self.base = random_llama(SHAPES[options.shape], options.dtype).eval()
        self.base.generation_config = GenerationConfig(pad_token_id=0, do_sample=False)  # no end token: rows run on
        self.prompt = _prompts(options, self.base)
        config = PrefixReftConfig(
            intervention=options.intervention,
            site="block" if options.intervention == "loreft" else "ffn_up",
            positions=options.positions,
        )
        self.ours = get_prefix_reft_model(sharing(self.base), config)
        with torch.no_grad():
            for parameter in self.ours.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
        with tempfile.TemporaryDirectory() as folder:
            self.ours.save_pretrained(folder)
            self.pyvene = pyreft.ReftModel.load(folder, sharing(self.base))
        self.pyvene.set_device(self.base.device)
        self.gate = self._gate()

    def _gate(self) -> KLGate:
        """A threshold that half of the rows pass at the middle of the open tokens."""
        from interventions.gates import KLGate

        output = self.ours.generate(
            **self.prompt, gate="kl:inf", max_new_tokens=END_OF_OPEN, return_dict_in_generate=True
        )
        threshold = output.kl[:, : END_OF_OPEN // 2].sum(dim=1).median().item()
        return KLGate(threshold, max_tokens=END_OF_OPEN, dead_band=0)

    def round(self) -> dict[str, float]:
        """Seconds of base, ours and each other contender of the options' ratios, one after the other."""
        new_tokens = self.options.new_tokens
        static: dict[str, Any] = {"cache_implementation": "static"} if self.options.cache == "static" else {}
        clocks = {"base": Clock(), "ours": Clock()}
        everywhere = {"intervene_on_prompt": self.options.positions == "all", "unit_locations": None}

        def base() -> Any:
            settings = {"max_new_tokens": new_tokens, "stopping_criteria": [clocks["base"]], **static}
            return self.base.generate(**self.prompt, **settings)

        def ours(tokens: int = new_tokens, **settings: Any) -> Any:
            return self.ours.generate(**self.prompt, gate=self.gate, max_new_tokens=tokens, **static, **settings)

        def two_generations() -> None:
            self.base.generate(**self.prompt, max_new_tokens=new_tokens)
            self.ours.generate(**self.prompt, gate="always", max_new_tokens=new_tokens)

        contenders: dict[str, Callable[[], Any]] = {
            "base": base,
            "ours": lambda: ours(stopping_criteria=[clocks["ours"]]),
            "pyvene": lambda: self.pyvene.generate(self.prompt, **everywhere, max_new_tokens=new_tokens),
            "two_generations": two_generations,
            "ours_while_open": lambda: ours(END_OF_OPEN),
            "uncached": self.uncached,
        }
        needed = {"base", "ours", *(name for ratio in self.options.ratios for name in RATIOS[ratio])}
        seconds = {name: timed(contender) for name, contender in contenders.items() if name in needed}
        for name, clock in clocks.items():
            seconds[f"{name}_after_closing"] = clock.median_step(END_OF_OPEN + 1)
        return seconds

    def cache(self) -> dict[str, float]:
        """Bytes of our KV cache over the base's, after the forward pass that gives the same token."""
        settings = {**self.prompt, "max_new_tokens": 2 * END_OF_OPEN}
        base = _cache_bytes(self.base, lambda: self.base.generate(**settings))
        ours = _cache_bytes(self.ours.model, lambda: self.ours.generate(gate=self.gate, **settings))
        shares = [a / b for a, b in zip(ours, base, strict=True)]
        return {
            "cache_while_open_vs_base": max(shares[:END_OF_OPEN]),
            "cache_after_closing_vs_base": max(shares[END_OF_OPEN:]),
        }

    def floor(self) -> float:
        """Seconds a token: ``max(bytes of W / bandwidth, 2·B·|W| / peak)`` for W, all weights but the embeddings."""
        embeddings = self.base.get_input_embeddings().weight
        weights = [weight for weight in self.base.parameters() if weight is not embeddings]
        products = 2 * self.options.batch_size * sum(weight.numel() for weight in weights)
        reading = sum(weight.nbytes for weight in weights) / read_peak()
        return float(max(reading, products / matrix_peak(self.options.dtype)))

    def uncached(self) -> torch.Tensor:
        """Both sequences from their start at every step, as a first draft of the method would."""
        import torch

        from interventions.gates import kl_divergence
        from interventions.positions import intervention_mask

        ids: torch.Tensor = self.prompt["input_ids"]
        attention: torch.Tensor = self.prompt["attention_mask"]
        width, is_open = ids.shape[1], torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        cumulative = torch.zeros(len(ids), device=ids.device)
        for step in range(END_OF_OPEN):
            positions = (attention.cumsum(dim=1) - 1).clamp(min=0)
            inputs = {"attention_mask": attention, "position_ids": positions, "use_cache": False, "logits_to_keep": 1}
            place = (torch.arange(ids.shape[1], device=ids.device) - width)[None]
            mask = intervention_mask(place, self.options.positions)
            with torch.no_grad():
                base = self.base(input_ids=ids, **inputs).logits[:, -1]
                mod = self.ours(input_ids=ids, intervention_mask=mask, **inputs).logits[:, -1]
            cumulative += kl_divergence(mod, base)
            is_open &= self.gate.stays_open(step, cumulative)
            tokens = torch.where(is_open[:, None], mod, base).argmax(dim=-1, keepdim=True)
            ids = torch.cat([ids, tokens], dim=1)
            attention = torch.cat([attention, torch.ones_like(tokens)], dim=1)
        return ids


def _prompts(options: DecodeOptions, model: PreTrainedModel) -> dict[str, Any]:
    """Returns random tokens, padded on the left."""
    import torch

    lengths = torch.linspace(options.prompt_length, options.prompt_length // 2, options.batch_size).long()
    columns = torch.arange(options.prompt_length)
    attention = (columns[None] >= options.prompt_length - lengths[:, None]).long()
    ids = torch.randint(3, model.config.vocab_size, attention.shape) * attention
    return {"input_ids": ids.to(model.device), "attention_mask": attention.to(model.device)}


def _cache_bytes(model: PreTrainedModel, generate: Callable[[], Any]) -> list[int]:
    """Size of the cache after each forward pass of ``generate``."""
    sizes: list[int] = []

    def note(module: Any, args: Any, output: Any) -> None:
        layers = output.past_key_values.layers
        sizes.append(sum(layer.keys.nbytes + layer.values.nbytes for layer in layers))

    handle = model.register_forward_hook(note)
    try:
        generate()
    finally:
        handle.remove()
    return sizes


def ratios(rounds: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Returns each of `RATIOS` whose contenders were measured, taken within rounds."""
    measured = {name: pair for name, pair in RATIOS.items() if rounds[0].keys() >= set(pair)}
    return {name: spread([row[a] / row[b] for row in rounds]) for name, (a, b) in measured.items()}


def main(options: DecodeOptions) -> None:
    from reft_math.commands.progress import progress
    from reft_math.commands.provenance import provenance
    from reft_math.files.tables import print_table

    contenders = Contenders(options)
    contenders.round()  # warms up
    rounds = [contenders.round() for _ in progress(range(options.rounds), name="measuring", unit="round")]
    found, cache, floor = ratios(rounds), contenders.cache(), contenders.floor()
    found["after_closing_vs_floor"] = spread([row["ours_after_closing"] / floor for row in rounds])
    title = (
        f"{options.shape}, {options.dtype}, batch {options.batch_size}, prompts of {options.prompt_length},"
        f" {options.new_tokens} new tokens, {options.cache} cache, gate {contenders.gate}"
    )
    rows = [
        [name, f"{ratio['median']:.3f}", f"{ratio['lower_quartile']:.3f} - {ratio['upper_quartile']:.3f}"]
        for name, ratio in found.items()
    ]
    rows += [[name, f"{share:.3f}", "-"] for name, share in cache.items()]
    print_table(title, ("ratio", "median", "quartiles"), rows)
    if options.json is not None:
        seconds = {name: spread([row[name] for row in rounds]) for name in rounds[0]}
        medians = {name: value["median"] for name, value in found.items()}
        report = {**provenance(options), **medians, **cache, "gate": str(contenders.gate)}
        report |= {"ratios": found, "seconds": seconds, "floor_seconds_a_token": floor}
        path = Path(options.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, report)


if __name__ == "__main__":
    run(main, DecodeOptions, __doc__)
