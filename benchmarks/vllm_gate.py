"""Compare gates inside vLLM with decoding here: the same tokens, divergences and closing positions?

    ENV/bin/python benchmarks/vllm_gate.py --json results/vllm-gate.json

ENV is an environment with vLLM and this project (docs/engines.md); `.ci/engines` makes one. Both run in one process, in
float32: transformers decodes under gates row by row in a batch, vLLM gets all requests at once, those of two adapters,
several gates and the base alone in turn. Adapters are drawn by a seed: equality does not ask for good ones.

    greedy     every request here and there; ``gap`` is that of the two top logits here at the first token that differs
    sampled    tokens drawn by vLLM's sampler, from seeds, out of logits here, stage by stage
    speed      tokens a second of all requests; the base alone on the same prompts
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reft_math.commands.run import run
from reft_math.errors import require
from reft_math.files.atomic import write_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from interventions import PrefixReftModel
    from reft_math.engines.vllm.course import GateReport, Written

SEED = 0
TEMPERATURE = 1.0
ADAPTERS: dict[str, dict[str, Any]] = {
    "red": {"intervention": "red", "site": "ffn_up"},
    "loreft": {"intervention": "loreft", "site": "block", "positions": "solution", "rank": 4},
}
SIZES = {"red": 0.02, "loreft": 0.02}


@dataclass(frozen=True)
class VllmGateOptions:
    model: str = field(default="arithmetic", metadata={"help": "Base: hub id, folder, or the embedded 'arithmetic'."})
    limit: int = field(default=100, metadata={"help": "Prompts, of the embedded problems; each under every gate."})
    sampled: int = field(default=20, metadata={"help": "Prompts of the comparison of samples."})
    max_new_tokens: int = field(default=48, metadata={"help": "Longest completion."})
    batch_size: int = field(default=50, metadata={"help": "Completions per batch here."})
    tensor_parallel: int = field(default=1, metadata={"help": "Processes that vLLM splits every matrix over."})
    json: str | None = field(default=None, metadata={"help": "File for the results."})

    def __post_init__(self) -> None:
        for name in ("limit", "max_new_tokens", "batch_size", "tensor_parallel"):
            require(self, name, lambda value: value >= 1, "at least 1")
        require(self, "sampled", lambda value: value >= 0, "0 or more")


@dataclass
class Here:
    """Base and adapters in this process, and token ids of the prompts."""

    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompts: list[list[int]]
    adapters: dict[str, PrefixReftModel]
    options: VllmGateOptions

    def write(self, generate: Any, prompts: Sequence[list[int]], max_new_tokens: int) -> list[dict[str, Any]]:
        """Returns tokens, divergences and closing positions, greedily, without an end token."""
        import torch

        from reft_math.data.prefix import pad_left

        rows: list[dict[str, Any]] = []
        for start in range(0, len(prompts), self.options.batch_size):
            batch = [torch.tensor(prompt) for prompt in prompts[start : start + self.options.batch_size]]
            inputs = pad_left(batch, 0)
            output = generate(
                inputs,
                attention_mask=pad_left([torch.ones_like(prompt) for prompt in batch], 0),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=None,
                return_dict_in_generate=True,
            )
            kl = getattr(output, "kl", None)
            for index, drawn in enumerate(output.sequences[:, inputs.shape[1] :].tolist()):
                seen = [] if kl is None else kl[index][~kl[index].isnan()].tolist()
                closing = -1 if kl is None else int(output.closing_positions[index])
                rows.append({"token_ids": drawn, "kl": seen, "closing_position": closing})
        return rows

    def gates(self, name: str) -> list[str]:
        """A threshold that half of the rows have passed by token 8, as many tokens for all, and no end."""
        rows = self.write(partial(self.adapters[name].generate, gate="kl:inf"), self.prompts[:50], 8)
        return [f"kl:{statistics.median(sum(row['kl']) for row in rows):.3g},min=1", "tokens:8", "always"]

    def gap(self, model: Any, gate: str, prompt: list[int], drawn: list[int]) -> float:
        """Returns the gap of the two top logits of the token after prompt and ``drawn``."""
        import torch

        ids = torch.tensor([prompt + drawn])
        output = model.generate(ids, gate=gate, max_new_tokens=1, return_dict_in_generate=True, output_logits=True)
        top = output.logits[0][0].float().topk(2).values
        return float(top[0] - top[1])


def make_here(options: VllmGateOptions) -> Here:
    import torch

    from interventions import PrefixReftConfig, get_prefix_reft_model
    from reft_math.commands.options.loading import LoadingOptions
    from reft_math.data.registry import ARITHMETIC, problems_to_report_on
    from reft_math.data.templates import encode_prompt, get_template
    from reft_math.models import load_model, load_tokenizer

    base = load_model(options.model, loading=LoadingOptions(dtype="float32"))
    tokenizer = load_tokenizer(options.model)
    template = get_template("auto", tokenizer)
    problems = problems_to_report_on(ARITHMETIC)[: options.limit]
    prompts = [list(encode_prompt(template, problem.question, tokenizer)) for problem in problems]
    adapters: dict[str, PrefixReftModel] = {}
    for name, config in ADAPTERS.items():
        # Each adapter has a base of its own: hooks of two on one would both act.
        model = base if not adapters else load_model(options.model, loading=LoadingOptions(dtype="float32"))
        torch.manual_seed(SEED)  # LoReFT starts from random directions
        adapters[name] = get_prefix_reft_model(model, PrefixReftConfig(**config))
        generator = torch.Generator().manual_seed(SEED)
        with torch.no_grad():
            for parameter in adapters[name].interventions.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * SIZES[name])
        adapters[name].eval()
    return Here(base, tokenizer, prompts, adapters, options)


def compare_greedy(here: Here, llm: Any) -> list[dict[str, Any]]:
    """All prompts under every gate of every adapter and without one, in one call of the engine."""
    from vllm import SamplingParams

    from reft_math.engines.vllm import Reft

    asked: list[tuple[str | None, str]] = [(None, "off")]
    asked += [(name, gate) for name in here.adapters for gate in here.gates(name)]
    jobs = [(name, gate, index) for index in range(len(here.prompts)) for name, gate in asked]
    params = SamplingParams(max_tokens=here.options.max_new_tokens, temperature=0, ignore_eos=True)
    start = time.perf_counter()
    outputs = llm.generate(
        [here.prompts[index] for *_, index in jobs],
        params,
        reft=[None if name is None else Reft(name, gate) for name, gate, _ in jobs],
    )
    seconds = time.perf_counter() - start
    print(f"{len(jobs)} requests at once: {sum(len(o.outputs[0].token_ids) for o in outputs) / seconds:.0f} tokens/s")
    rows = []
    for name, gate in asked:
        model = here.adapters[name or "red"]
        ours = here.write(partial(model.generate, gate=gate), here.prompts, here.options.max_new_tokens)
        theirs = [output for output, job in zip(outputs, jobs, strict=True) if job[:2] == (name, gate)]
        rows.append({"adapter": name, "gate": gate, **difference(here, model, gate, ours, theirs)})
    return rows


def difference(
    here: Here, model: PrefixReftModel, gate: str, ours: Sequence[dict[str, Any]], theirs: Sequence[Any]
) -> dict[str, Any]:
    """Counts equal completions and closing positions; the largest gap at a difference, and of divergences."""
    different: dict[int, float] = {}
    same_closing, apart = 0, 0.0
    for index, (mine, output) in enumerate(zip(ours, theirs, strict=True)):
        tokens = list(output.outputs[0].token_ids)
        report: GateReport | None = output.reft
        closing = -1 if report is None else report.closing_position
        same_closing += closing == mine["closing_position"]
        if tokens != mine["token_ids"]:
            pairs = zip(tokens, mine["token_ids"], strict=True)
            same = next(place for place, (one, other) in enumerate(pairs) if one != other)
            is_edited = gate == "always" or same < mine["closing_position"]
            drawn = mine["token_ids"][:same]
            different[index] = here.gap(model, "always" if is_edited else "off", here.prompts[index], drawn)
        elif report is not None:
            apart = max([apart, *(abs(a - b) for a, b in zip(report.kl, mine["kl"], strict=False))])
    return {
        "completions": len(ours),
        "equal": len(ours) - len(different),
        "different": different,
        "same_closing": same_closing,
        "closing_positions": [mine["closing_position"] for mine in ours],
        "kl_apart": apart,
    }


def compare_samples(here: Here, llm: Any) -> dict[str, Any]:
    """Seeded samples under a KL gate, against the same course with logits here."""
    from vllm import SamplingParams

    from reft_math.engines.vllm import Reft

    prompts = here.prompts[: here.options.sampled]
    name, gate = "red", here.gates("red")[0]
    params = [
        SamplingParams(
            max_tokens=here.options.max_new_tokens, temperature=TEMPERATURE, seed=SEED + index, ignore_eos=True
        )
        for index in range(len(prompts))
    ]
    outputs = llm.generate(prompts, params, reft=Reft(name, gate))
    equal, closings = 0, []
    for index, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        written, report = sampled_here(here, name, gate, prompt, SEED + index)
        equal += list(written.token_ids) == list(output.outputs[0].token_ids)
        closings.append(report.closing_position)
    greedy = here.write(partial(here.adapters[name].generate, gate=gate), prompts, here.options.max_new_tokens)
    differ = sum(
        list(output.outputs[0].token_ids) != row["token_ids"] for output, row in zip(outputs, greedy, strict=True)
    )
    return {"gate": gate, "completions": len(prompts), "equal": equal, "not_greedy": differ, "closings": closings}


def sampled_here(here: Here, name: str, gate: str, prompt: list[int], seed: int) -> tuple[Written, GateReport]:
    """Answers a gated request's course with transformers' logits and vLLM's draws."""
    import torch
    from vllm.platforms import current_platform
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    from interventions.gates import kl_divergence, parse_gate
    from reft_math.engines.vllm.course import Draft, Verify, Written, course
    from reft_math.engines.vllm.requests import stage_seed

    current_platform.import_kernels()  # the sampler's, which only workers import by themselves
    reft_model, draw = here.adapters[name], TopKTopPSampler()

    def logits(token_ids: list[int], is_edited: bool) -> torch.Tensor:
        ids = torch.tensor([token_ids])
        with torch.no_grad():
            if is_edited:
                found = reft_model(ids, intervention_mask=torch.ones_like(ids, dtype=torch.bool)).logits
            else:
                found = reft_model.model(ids).logits
        return found[0].float()  # type: ignore[no-any-return]

    way = course(prompt, here.options.max_new_tokens, parse_gate(gate).on(torch.float32))
    ask = next(way)
    while True:
        if isinstance(ask, Verify):
            last = slice(-ask.num_drafted, None)
            answer: Any = kl_divergence(logits(ask.token_ids, True)[last], logits(ask.token_ids, False)[last]).tolist()
        else:
            text = list(ask.token_ids)
            generator = torch.Generator().manual_seed(stage_seed(seed, len(text) - len(prompt)))
            for _ in range(ask.max_tokens):
                last_row = logits(text, isinstance(ask, Draft))[-1:] / TEMPERATURE
                text.append(int(draw(last_row, {0: generator}, None, None)[0]))
            answer = Written(text[len(ask.token_ids) :], "length")
        try:
            ask = way.send(answer)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]


def main(options: VllmGateOptions) -> None:
    import vllm

    from reft_math.commands.provenance import provenance
    from reft_math.engines.vllm import ReftLLM
    from reft_math.files.tables import print_table

    here = make_here(options)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "base"
        here.base.save_pretrained(folder)
        here.tokenizer.save_pretrained(folder)
        folders = {name: Path(work) / name for name in here.adapters}
        for name, adapter in here.adapters.items():
            adapter.save_pretrained(folders[name])
        llm = ReftLLM(
            str(folder),
            folders,
            dtype="float32",
            tensor_parallel_size=options.tensor_parallel,
            max_model_len=max(map(len, here.prompts)) + options.max_new_tokens,
            max_num_seqs=256,
            block_size=32,  # small, so that prompts of one text and their drafts share cached blocks
        )
        greedy = compare_greedy(here, llm)
        samples = compare_samples(here, llm) if options.sampled else None
    print_table(
        f"gates inside vLLM {vllm.__version__}, float32, greedy, {options.tensor_parallel} process(es)",
        ("adapter", "gate", "equal", "of", "same closing", "different closings", "largest gap", "D apart"),
        [
            [
                row["adapter"] or "none",
                row["gate"],
                str(row["equal"]),
                str(row["completions"]),
                str(row["same_closing"]),
                str(len(set(row["closing_positions"]))),
                f"{max(row['different'].values()):.2g}" if row["different"] else "-",
                f"{row['kl_apart']:.1g}",
            ]
            for row in greedy
        ],
    )
    print(f"sampled: {samples}")
    if options.json is not None:
        path = Path(options.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        found = {"vllm": vllm.__version__, "greedy": greedy, "sampled": samples, "settings": asdict(options)}
        write_json(path, {**provenance(options), **found})


if __name__ == "__main__":
    run(main, VllmGateOptions, __doc__)
