"""Compare real engines with decoding here: are completions equal, how far are log-probabilities apart, how fast.

    uv run benchmarks/engines.py --vllm ENV/bin/python --llama llama-server --json results/engines.json

`.ci/engines` makes vLLM's environment and runs it. Both engines get the weights of one GGUF file: vLLM as a folder in
float32, llama.cpp as a GGUF in float32 and as the file is. Servers run one after the other.

    handed over   a gate opens a RED at ffn_up here, an engine with the base writes the rest, as with --engine
    inside        vLLM has RED and gate, and writes all, as with --engine-adapter; D and closing positions agree, too
    always on     on vLLM a RED in the weights (train/merge_adapter.py), on llama.cpp a bias at block as control vector

The model is the embedded one or that of --model. Adapters are drawn by a seed: equality does not ask for good ones.
Completions are greedy; they are equal if text and number of tokens are. ``gap`` is that of the two top logits here at
the first token that differs: one of rounding's size is a tie, which no two programs break alike. Log-probabilities are
those of an engine's 20 top tokens after a prompt.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common.gguf_writing import embedded_gguf, float_gguf
from benchmarks.common.servers import llama_command, post, serving, vllm_command
from reft_math.commands.run import run
from reft_math.errors import UserError, require
from reft_math.files.atomic import write_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from interventions import PrefixReftModel
    from reft_math.decoding.completions import Complete, CompletionSettings

Row = dict[str, Any]
ALWAYS_ON = 32  # completions always on
PROMPTS = 8  # whose log-probabilities are compared
SEED = 0
SAME = ("completion", "num_tokens", "finished")
RED = "red"  # the adapter's name on vLLM
COLUMNS = (
    "engine",
    "gate",
    "handed over",
    "equal",
    "of",
    "largest gap",
    "Δ log p",
    "… of the edit",
    "tokens/s",
    "here",
)


@dataclass(frozen=True)
class EnginesOptions:
    model: str | None = field(
        default=None,
        metadata={"help": "GGUF file: local, or owner/repository/file.gguf (the embedded model in 8 bits)."},
    )
    vllm: str | None = field(default=None, metadata={"help": "Python with vLLM (left out)."})
    llama: str | None = field(default=None, metadata={"help": "Path of llama-server (left out)."})
    limit: int = field(default=100, metadata={"help": "Completions under each gate, of the embedded problems."})
    max_new_tokens: int = field(default=48, metadata={"help": "Longest completion."})
    batch_size: int = field(default=50, metadata={"help": "Completions per batch."})
    json: str | None = field(default=None, metadata={"help": "File for the results."})

    def __post_init__(self) -> None:
        if self.vllm is None and self.llama is None:
            raise UserError("--vllm or --llama must name an engine to compare with; got neither")
        require(self, "model", lambda value: value is None or value.endswith(".gguf"), "a .gguf file")
        for name in ("limit", "batch_size"):
            require(self, name, lambda value: value >= 1, "at least 1")
        require(self, "max_new_tokens", lambda value: value > 8, "more than 8, the tokens of gate tokens:8")


class Remembered:
    """``generate``, whose outputs are kept and given again for the same prompts; ``seconds`` is the time it took."""

    def __init__(self, generate: Callable[..., Any]) -> None:
        self._generate, self.seconds = generate, 0.0
        self._outputs: dict[bytes, Any] = {}
        self.drawn: list[list[int]] = []

    def __call__(self, inputs: torch.Tensor, **settings: Any) -> Any:
        key = inputs.cpu().numpy().tobytes()
        if key not in self._outputs:
            start = time.perf_counter()
            self._outputs[key] = self._generate(inputs, **settings)
            self.seconds += time.perf_counter() - start
            self.drawn += self._outputs[key].sequences[:, inputs.shape[1] :].tolist()
        return self._outputs[key]


class Here:
    """Base, adapters and questions, and what they write in this process."""

    def __init__(self, options: EnginesOptions, work: Path) -> None:
        from interventions.sites import num_layers
        from reft_math.commands.options.loading import LoadingOptions
        from reft_math.data.arithmetic import EMBEDDED_MODEL
        from reft_math.data.arithmetic.problems import OPENERS
        from reft_math.data.registry import ARITHMETIC, problems_to_report_on
        from reft_math.data.templates import get_template
        from reft_math.decoding.completions import CompletionSettings
        from reft_math.models import load_model, load_tokenizer
        from reft_math.models.base import end_token_ids
        from reft_math.models.gguf_files import local_file
        from reft_math.models.merging import merge

        self.options = options
        self.file = local_file(options.model) if options.model else embedded_gguf(work / "embedded.gguf")
        tokenizer = load_tokenizer(options.model or EMBEDDED_MODEL)
        template = get_template("auto", tokenizer)
        self.base = load_model(str(self.file), loading=LoadingOptions(dtype="float32"))
        self.decoding = CompletionSettings(
            tokenizer,
            template,
            end_token_ids(self.base, tokenizer, template),
            options.max_new_tokens,
            opener="" if options.model else OPENERS["stepwise"],  # without it the embedded model answers in few tokens
        )
        self.questions = [problem.question for problem in problems_to_report_on(ARITHMETIC)[: options.limit]]
        self.red = drawn_adapter(self.base, 0.02, intervention="red", site="ffn_up")
        self.red_folder = work / "red"
        self.red.save_pretrained(self.red_folder)
        behind_the_first = f"1-{num_layers(self.base) - 1}"  # which no control vector has
        size = 0.1 * self.residual_size()
        self.bias = drawn_adapter(self.base, size, intervention="bias", site="block", layers=behind_the_first)
        self.folder, self.merged = work / "base", work / "merged"
        for folder, model in ((self.folder, self.base), (self.merged, merge(self.red))):
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

    def residual_size(self) -> float:
        """Returns the root mean square of the residual stream between blocks, over the first prompt."""
        import torch

        with torch.no_grad():
            hidden = self.base(
                self.decoding.prompts(self.questions[:1])[0][None], output_hidden_states=True
            ).hidden_states
        return float(torch.stack(hidden[1:-1]).square().mean().sqrt())

    def merged_up_projections(self) -> dict[str, Any]:
        """Returns weights and biases of the RED's base with it in the weights, by GGUF's names."""
        from reft_math.models import load_model

        state = load_model(str(self.merged)).state_dict()
        layers = range(self.base.config.num_hidden_layers)
        return {
            f"blk.{layer}.ffn_up.{part}": state[f"model.layers.{layer}.mlp.up_proj.{part}"].float().numpy()
            for layer in layers
            for part in ("weight", "bias")
        }

    def gates(self) -> list[str]:
        """A threshold that half of the rows have passed by token 8, and as many tokens for all."""
        import statistics

        first = self.questions[: self.options.batch_size]
        rows = self.write(partial(self.red.generate, gate="kl:inf"), first, replace(self.decoding, max_new_tokens=8))
        return [f"kl:{statistics.median(row['cumulative_kl'] for row in rows):.3g},min=1", "tokens:8"]

    def write(
        self, generate: Callable[..., Any], questions: Sequence[str], decoding: CompletionSettings | None = None
    ) -> list[Row]:
        from reft_math.decoding.completions import complete

        settings = {"decoding": decoding or self.decoding, "device": self.base.device}
        return self.in_batches(partial(complete, generate=generate, **settings), questions)

    def hand_over(self, generate: Callable[..., Any], questions: Sequence[str], address: str) -> list[Row]:
        from reft_math.decoding.completions import complete_by_engine
        from reft_math.decoding.engine import Engine

        engine = Engine(f"{address}/v1", self.decoding.tokenizer, concurrency=len(questions))
        settings = {"decoding": self.decoding, "device": self.base.device, "engine": engine}
        return self.in_batches(partial(complete_by_engine, generate=generate, **settings), questions)

    def inside(self, gate: str, questions: Sequence[str], address: str) -> list[Row]:
        from reft_math.decoding.completions import complete_in_engine
        from reft_math.decoding.engine import Engine, ServedAdapter
        from reft_math.models.card import parameters_sha256

        served = ServedAdapter(RED, gate, parameters_sha256(self.red_folder))
        tokenizer = self.decoding.tokenizer
        engine = Engine(f"{address}/v1", tokenizer, concurrency=len(questions), adapter=served)
        return complete_in_engine(questions, None, decoding=self.decoding, engine=engine)

    def in_batches(self, complete: Complete, questions: Sequence[str]) -> list[Row]:
        size = self.options.batch_size
        return [
            row for start in range(0, len(questions), size) for row in complete(questions[start : start + size], None)
        ]

    def logits(self, model: PrefixReftModel, gate: str, ids: torch.Tensor) -> torch.Tensor:
        """Returns ``(vocabulary,)`` of the token after ``ids: (length,)``."""
        import torch

        output = model.generate(
            ids[None],
            gate=gate,
            attention_mask=torch.ones_like(ids)[None],
            max_new_tokens=1,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return output.logits[0][0].float()  # type: ignore[no-any-return]

    def gap(self, model: PrefixReftModel, gate: str, index: int, drawn: Sequence[int], theirs: str) -> float:
        """Returns the gap of the two top logits here at the first token that is not in an engine's text."""
        import torch

        texts = [self.decoding.opener + self.decoding.text(drawn[:number]) for number in range(1, len(drawn) + 1)]
        same = first_difference(texts, theirs)
        prompt = self.decoding.prompts(self.questions[index : index + 1])[0]
        top = self.logits(model, gate, torch.cat([prompt, torch.tensor(drawn[:same], dtype=torch.long)])).topk(2).values
        return float(top[0] - top[1])


def drawn_adapter(base: PreTrainedModel, size: float, **config: Any) -> PrefixReftModel:
    """Returns an adapter whose parameters are normal about those that do nothing, with deviation ``size``."""
    import torch

    from interventions import PrefixReftConfig, get_prefix_reft_model

    reft_model = get_prefix_reft_model(base, PrefixReftConfig(**config))
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in reft_model.interventions.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.device) * size)
    return reft_model.eval()


def first_difference(texts: Sequence[str], theirs: str) -> int:
    """Returns the index of the first of growing texts, one a token, that another text does not begin with; the last if
    it begins with all: one of the two ended there."""
    return next((index for index, text in enumerate(texts) if not theirs.startswith(text)), len(texts) - 1)


def top_log_probs(address: str, prompt: Sequence[int]) -> dict[int, float]:
    """Returns an engine's 20 most probable next tokens; vLLM and llama.cpp answer differently."""
    body = {"prompt": list(prompt), "max_tokens": 1, "temperature": 0, "logprobs": 20}
    found = post(address, {**body, "return_tokens_as_token_ids": True})["choices"][0]["logprobs"]
    if "content" in found:  # llama.cpp
        return {one["id"]: one["logprob"] for one in found["content"][0]["top_logprobs"]}
    return {int(name.removeprefix("token_id:")): value for name, value in found["top_logprobs"][0].items()}


class Comparison:
    """Completions and log-probabilities here, once, and every engine's beside them."""

    def __init__(self, here: Here) -> None:
        self.here = here
        self.rows: list[Row] = []
        self.theirs: list[Row] = []  # the last engine's
        self._local: dict[tuple[int, str, int], tuple[Remembered, list[Row]]] = {}
        self._prefixes: dict[str, Remembered] = {}

    def local(self, model: PrefixReftModel, gate: str, questions: Sequence[str]) -> tuple[Remembered, list[Row]]:
        key = id(model), gate, len(questions)
        if key not in self._local:
            generate = Remembered(partial(model.generate, gate=gate))
            self._local[key] = generate, self.here.write(generate, questions)
        return self._local[key]

    def handed_over(self, engine: str, address: str, gates: Sequence[str]) -> None:
        for gate in gates:
            generate = self._prefixes.setdefault(gate, Remembered(partial(self.here.red.generate, gate=gate)))
            write = partial(self.here.hand_over, generate)
            self._compare(engine, address, self.here.red, gate, write, self.here.questions, generate)

    def inside(self, engine: str, address: str, gates: Sequence[str]) -> None:
        """The engine has adapter and gate, and writes from the prompt on."""
        for gate in gates:
            write = partial(self.here.inside, gate)
            self._compare(engine, address, self.here.red, gate, write, self.here.questions)
            local, theirs = self.local(self.here.red, gate, self.here.questions)[1], self.theirs
            pairs = list(zip(local, theirs, strict=True))
            same = [one.get("closing_position") == other.get("closing_position") for one, other in pairs]
            kl = [pair for one, other in pairs for pair in zip(one.get("kl", []), other.get("kl", []), strict=False)]
            apart = max((abs(mine - its) for mine, its in kl), default=0.0)
            self.rows[-1] |= {"same_closing": sum(same), "kl_apart": apart}

    def always_on(self, engine: str, address: str, model: PrefixReftModel) -> None:
        """The engine has the adapter and writes from the prompt on."""
        questions = self.here.questions[:ALWAYS_ON]
        write = partial(self.here.hand_over, Remembered(draw_nothing))
        self._compare(engine, address, model, "always", write, questions, bare="always")

    def _compare(
        self,
        engine: str,
        address: str,
        model: PrefixReftModel,
        gate: str,
        write: Callable[[Sequence[str], str], list[Row]],
        questions: Sequence[str],
        before: Remembered | None = None,
        bare: str = "off",
    ) -> None:
        """Compares what ``write`` returns.

        Args:
            before: What draws the first tokens here; None if the engine draws all.
            bare: The gate under which the engine reads a prompt that asks for none; of the log-probabilities compared.
        """
        goes_on = "always" if gate == "always" else "off"
        local, ours = self.local(model, gate, questions)
        before = before or Remembered(draw_nothing)
        spent, start = before.seconds, time.perf_counter()
        self.theirs = theirs = write(questions, address)
        seconds = time.perf_counter() - start - (before.seconds - spent)  # the engine's
        differ = [index for index, row in enumerate(theirs) if any(row[name] != ours[index][name] for name in SAME)]
        gaps = [self.here.gap(model, goes_on, i, local.drawn[i], theirs[i]["completion"]) for i in differ]
        tokens, tokens_here = (sum(row["num_tokens"] for row in rows) for rows in (theirs, ours))
        apart, edit = self._log_probs(address, model, bare)
        self.rows.append(
            {
                "engine": engine,
                "gate": gate,
                "completions": len(theirs),
                "handed_over": sum(row.get("closing_position") is not None for row in theirs),
                "equal": len(theirs) - len(differ),
                "different": dict(zip(differ, gaps, strict=True)),
                "closing_positions": [row.get("closing_position") for row in theirs],
                "log_prob_difference": apart,
                "log_prob_difference_by_the_edit": edit if bare == "always" else None,
                "tokens": tokens,
                "seconds_before_handing_over": before.seconds,
                "seconds_engine": seconds,
                "seconds_here": local.seconds,
                "tokens_a_second": tokens / (before.seconds + seconds),
                "tokens_a_second_here": tokens_here / local.seconds,
            }
        )

    def _log_probs(self, address: str, model: PrefixReftModel, gate: str) -> tuple[float, float]:
        """Returns the largest differences from ours over an engine's top tokens: its log-probabilities', the base's."""
        apart = edit = 0.0
        for prompt in self.here.decoding.prompts(self.here.questions[:PROMPTS]):
            log_p, base = (self.here.logits(model, each, prompt).log_softmax(-1) for each in (gate, "off"))
            for token, value in top_log_probs(address, prompt.tolist()).items():
                apart = max(apart, abs(value - float(log_p[token])))
                edit = max(edit, abs(float(base[token] - log_p[token])))
        return apart, edit


def draw_nothing(inputs: torch.Tensor, **_: Any) -> Any:
    """Hands over at once, as a gate that is closed from the start."""
    import torch

    from interventions.pairs import GatedOutput

    return GatedOutput(sequences=inputs, closing_positions=torch.zeros(len(inputs), dtype=torch.long))


def measure(options: EnginesOptions, work: Path) -> Comparison:
    """Starts each engine that the options name, compares, and ends it."""
    from reft_math.models.control_vector import write_control_vector

    here = Here(options, work)
    found, gates = Comparison(here), here.gates()
    if options.vllm is not None:
        with serving(vllm_command(options.vllm, here.folder), log_of("vllm")) as address:
            found.handed_over("vLLM, float32", address, gates)
        with serving(vllm_command(options.vllm, here.folder, {RED: here.red_folder}), log_of("vllm-gate")) as address:
            found.inside("vLLM, gate inside", address, [*gates, "always"])
        with serving(vllm_command(options.vllm, here.merged), log_of("vllm-merged")) as address:
            found.always_on("vLLM, RED in the weights", address, here.red)
    if options.llama is not None:
        file, vector = float_gguf(here.file, work / "float.gguf"), work / "vector.gguf"
        write_control_vector(here.bias, vector)
        with serving(llama_command(options.llama, file, options.limit), log_of("llama")) as address:
            found.handed_over("llama.cpp, float32", address, gates)
        with serving(llama_command(options.llama, here.file, options.limit), log_of("llama-file")) as address:
            found.handed_over("llama.cpp, the file as it is", address, gates[:1])
        if here.base.config.model_type == "llama":  # llama.cpp's layers of other families have no such biases
            merged = float_gguf(here.file, work / "merged.gguf", here.merged_up_projections())
            with serving(llama_command(options.llama, merged, ALWAYS_ON), log_of("llama-merged")) as address:
                found.always_on("llama.cpp, float32, RED in the weights", address, here.red)
        with serving(llama_command(options.llama, file, ALWAYS_ON, vector), log_of("llama-vector")) as address:
            found.always_on("llama.cpp, float32, control vector", address, here.bias)
    return found


def log_of(engine: str) -> Path:
    return Path(tempfile.gettempdir()) / f"{engine}.log"


def versions(options: EnginesOptions) -> dict[str, str]:
    """Returns what the engines say of themselves."""
    asked = {
        "vllm": options.vllm and [options.vllm, "-c", "import vllm; print(vllm.__version__)"],
        "llama.cpp": options.llama and [options.llama, "--version"],
    }
    done = {
        name: subprocess.run(
            line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for name, line in asked.items()
        if line
    }
    return {name: " ".join(process.stdout.split()[-20:]) for name, process in done.items()}


def table(rows: Sequence[Row]) -> list[list[str]]:
    """Returns the lines of the printed table."""
    return [
        [
            row["engine"],
            row["gate"],
            str(row["handed_over"]),
            str(row["equal"]),
            str(row["completions"]),
            f"{max(row['different'].values()):.2g}" if row["different"] else "-",
            f"{row['log_prob_difference']:.2g}",
            "-" if (edit := row["log_prob_difference_by_the_edit"]) is None else f"{edit:.2g}",
            f"{row['tokens_a_second']:.1f}",
            f"{row['tokens_a_second_here']:.1f}",
        ]
        for row in rows
    ]


def main(options: EnginesOptions) -> None:
    from reft_math.commands.provenance import provenance
    from reft_math.files.tables import print_table

    with tempfile.TemporaryDirectory() as work:
        found = measure(options, Path(work))
    said = versions(options)
    title = f"{found.here.file.name}, greedy, at most {options.max_new_tokens} tokens; {said}"
    print_table(title, COLUMNS, table(found.rows))
    if options.json is not None:
        path = Path(options.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**provenance(options), "engines": said, "rows": found.rows})


if __name__ == "__main__":
    run(main, EnginesOptions, __doc__)
