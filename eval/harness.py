"""Let lm-eval judge a model, with or without an adapter: its tasks, prompts and metrics, our decoding under a gate.

    uv run eval/harness.py --adapter results/prefix-reft/adapter --gate kl:0.5 --tasks gsm8k,minerva_math500

Without an adapter, or with ``--gate off``, the numbers are those of lm-eval's own ``hf`` model. ``docs/lm-eval.md``
says what a gate means for log-likelihoods. Writes ``results.json`` with lm-eval's results in it, and with
``--log-samples`` ``records/<task>.jsonl``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from reft_math.command import run
from reft_math.errors import UserError, require, require_seed
from reft_math.evaluation_options import DecoderOptions

SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")


@dataclass(frozen=True)
class HarnessOptions(DecoderOptions):
    FREE_ON_RESUME: ClassVar[frozenset[str]] = frozenset({"batch_size", "log_samples"})

    tasks: str | None = field(default=None, metadata={"help": "lm-eval's names of tasks, with commas between them."})
    include_path: str | None = field(default=None, metadata={"help": "Folder with task files (.yaml) of your own."})
    num_fewshot: int | None = field(default=None, metadata={"help": "Examples in a prompt (the task's own number)."})
    apply_chat_template: bool = field(default=False, metadata={"help": "Put prompts into the model's chat template."})
    fewshot_as_multiturn: bool = field(
        default=True, metadata={"help": "Give each example in a chat a turn of its own."}
    )
    system_instruction: str | None = field(default=None, metadata={"help": "Text before every prompt (none)."})
    gen_kwargs: str | None = field(
        default=None,
        metadata={"help": "Over the tasks' own: max_gen_toks=1024, or do_sample=True,temperature=0.7."},
    )
    limit: int | None = field(default=None, metadata={"help": "First problems of a task only (all)."})
    batch_size: int = field(default=16, metadata={"help": "Requests a batch."})
    max_length: int | None = field(
        default=None, metadata={"help": "Prompt and answer together, in tokens (the model's own)."}
    )
    seed: int | None = field(
        default=None, metadata={"help": "Of samples and of the examples' choice (lm-eval's own, 1234)."}
    )
    log_samples: bool = field(default=False, metadata={"help": "Write every prompt, answer and score, too."})
    output_dir: str = field(default="results/harness", metadata={"help": "Everything goes here."})
    resume: bool = field(default=False, metadata={"help": "Go on where a stopped run left off."})
    overwrite: bool = field(default=False, metadata={"help": "Delete the output folder's run and start anew."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.names:
            raise UserError("--tasks names what to measure, such as gsm8k,minerva_math500; got none")
        for name in ("limit", "batch_size", "max_length"):
            require(self, name, lambda value: value is None or value >= 1, "at least 1")
        require_seed(self)
        require(self, "num_fewshot", lambda value: value is None or value >= 0, "at least 0")

    @property
    def names(self) -> list[str]:
        return [name for name in (self.tasks or "").split(",") if name]


def main(options: HarnessOptions) -> None:
    import dataclasses

    from reft_math.command import RESULTS_NAME, print_table, provenance
    from reft_math.data.fingerprint import digest
    from reft_math.files import write_json
    from reft_math.harness import (
        RESULT_COLUMNS,
        load_tasks,
        plain,
        read_gen_kwargs,
        result_rows,
        settle_generation,
        write_samples,
    )

    manager, tasks = load_tasks(options.names, options.include_path)  # says what is missing, lm-eval too
    gen_kwargs = read_gen_kwargs(options.gen_kwargs)

    from lm_eval import simple_evaluate

    from interventions.harness import ReftMathLM
    from reft_math.processes import claim, part_ways

    decoder = {each.name: getattr(options, each.name) for each in dataclasses.fields(DecoderOptions)}
    lm = ReftMathLM(
        pretrained=decoder.pop("model"), batch_size=options.batch_size, max_length=options.max_length, **decoder
    )
    if options.apply_chat_template and not lm.tokenizer.chat_template:
        raise UserError("--apply-chat-template needs a tokenizer that has one; the model's has none: leave it out")
    resolved = lm.setting.options
    options = dataclasses.replace(options, **{name: getattr(resolved, name) for name in (*decoder, "model")})
    settle_generation(
        manager.load(tasks)["tasks"].values(), gen_kwargs, lm.max_gen_toks, lm.max_length, lm.reft_model is None
    )
    folder = claim(options)
    seeds = {} if options.seed is None else dict.fromkeys(SEEDS, options.seed)
    found = simple_evaluate(
        model=lm,
        tasks=tasks,
        task_manager=manager,
        num_fewshot=options.num_fewshot,
        limit=options.limit,
        batch_size=options.batch_size,
        apply_chat_template=options.apply_chat_template,
        fewshot_as_multiturn=options.fewshot_as_multiturn,
        system_instruction=options.system_instruction,
        gen_kwargs=gen_kwargs,
        use_cache=str(folder / "answers"),  # what --resume goes on from
        **seeds,
    )
    part_ways()
    samples = found.pop("samples")
    requests = [request for rows in samples.values() for row in rows for request in row["arguments"]]
    requests = [request for request in requests if len(request) == 2 and request[0]]  # a whole text has no prompt
    prompts = {prompt for prompt, _ in requests}
    cut = {prompt for prompt, rest in requests if lm.is_cut(prompt, rest)}
    results = {
        **provenance(options),
        "base_commit": getattr(lm.setting.model.config, "_commit_hash", None),
        "adapter": None if lm.setting.adapter is None else dataclasses.asdict(lm.setting.adapter),
        "prompts": {
            "total": len(prompts),
            "sha256": digest((prompt,) for prompt in prompts),
            "unlike_training": lm.unlike_training(prompts),
            "cut": len(cut),
        },
        "lm_eval": found,
    }
    write_json(folder / RESULTS_NAME, plain(results))
    if options.log_samples:
        write_samples(folder / "records", samples)
    print_table(f"lm-eval {found['lm_eval_version']}, gate {options.gate}", RESULT_COLUMNS, list(result_rows(found)))
    print(f"results: {folder / RESULTS_NAME}")


if __name__ == "__main__":
    run(main, HarnessOptions, __doc__)
