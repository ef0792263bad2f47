"""The body of the evaluation commands: a model, with or without an adapter, on a data set."""

from __future__ import annotations

from dataclasses import replace

from interventions.checkpoint import fetch
from interventions.config import PrefixReftConfig
from interventions.model import PrefixReftModel
from reft_math.command import RESULTS_NAME, claim_output_dir, print_table, provenance, write_json
from reft_math.data.registry import evaluation_split, load_problems
from reft_math.data.templates import get_template
from reft_math.decoding.gate import parse_gate
from reft_math.errors import UserError
from reft_math.evaluation import (
    EVALUATION_COLUMNS,
    Decoding,
    Generate,
    Scorer,
    default_max_new_tokens,
    evaluate,
    evaluation_rows,
    is_numeric,
    summarise,
)
from reft_math.evaluation_options import EvaluationOptions
from reft_math.models import end_token_ids, load_model, load_tokenizer


def run_evaluation(options: EvaluationOptions, dataset: str, opener: str = "") -> None:
    """Reads everything, claims the output folder, then evaluates: a mistake in the input leaves nothing behind.

    Args:
        options: The command's settings.
        dataset: A name `load_problems` knows.
        opener: Text that every completion is made to start with.
    """
    config = None if options.adapter is None else PrefixReftConfig.from_pretrained(fetch(options.adapter))
    options = _resolve(options, config, dataset)
    problems = load_problems(dataset, evaluation_split(dataset), data_dir=options.data_dir, limit=options.limit)
    tokenizer = load_tokenizer(options.model, options.revision)
    template = get_template(str(options.template), tokenizer)
    model = load_model(options.model, options.revision, options.dtype)
    generate: Generate = model.generate
    if options.adapter is not None:
        reft_model = PrefixReftModel.from_pretrained(options.adapter, model).eval()
        gate = parse_gate(str(options.gate))

        def generate(inputs, **settings):  # type: ignore[no-untyped-def]
            return reft_model.generate(inputs, gate=gate, **settings)

    max_new_tokens = options.max_new_tokens
    assert max_new_tokens is not None  # resolved
    folder = claim_output_dir(options)
    decoding = Decoding(
        tokenizer=tokenizer,
        template=template,
        end_token_ids=end_token_ids(model, tokenizer, template),
        max_new_tokens=max_new_tokens,
        batch_size=options.batch_size,
        opener=opener,
    )
    name = "base" if options.adapter is None else f"adapter ({options.gate})"
    with Scorer(is_numeric(dataset, problems)) as score:
        records = evaluate(problems, generate, decoding, score, folder / "records.jsonl", model.device, dataset)
    summary = summarise(records)
    settings = {
        "dataset": dataset,
        "template": str(template),
        "opener": opener,
        "end_token_ids": decoding.end_token_ids,
    }
    write_json(folder / RESULTS_NAME, {**provenance(options), **settings, "evaluation": {name: summary}})
    print_table(f"{dataset}, {len(problems)} problems, greedy", EVALUATION_COLUMNS, evaluation_rows({name: summary}))
    print(f"results: {folder / RESULTS_NAME}")


def _resolve(options: EvaluationOptions, config: PrefixReftConfig | None, dataset: str) -> EvaluationOptions:
    """Takes gate and prompt template from the adapter unless told otherwise."""
    if config is None and options.gate not in (None, "off"):
        raise UserError(f"--gate {options.gate} opens an adapter's interventions; pass --adapter, or leave --gate out")
    trained_with = config.template.partition("/")[0] if config is not None and config.template else "auto"
    return replace(
        options,
        gate=options.gate or ("off" if config is None else config.gate),
        template=options.template or trained_with,
        max_new_tokens=options.max_new_tokens or default_max_new_tokens(dataset),
    )
