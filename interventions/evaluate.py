"""The body of the evaluation commands: a model, with or without an adapter, on a data set."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import replace

from interventions.checkpoint import fetch
from interventions.config import PrefixReftConfig
from interventions.model import PrefixReftModel
from reft_math.command import RESULTS_NAME, claim_output_dir, print_table, provenance, write_json
from reft_math.data.registry import evaluation_split, load_problems
from reft_math.data.templates import PromptTemplate, get_template
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
from reft_math.models import EMBEDDED_MODEL, end_token_ids, load_model, load_tokenizer


def run_evaluation(options: EvaluationOptions, dataset: str, opener: str = "") -> None:
    """Reads everything, claims the output folder, then evaluates: a mistake in the input leaves nothing behind.

    Args:
        options: The command's settings.
        dataset: A name `load_problems` knows.
        opener: Text that every completion is made to start with.
    """
    adapter = None if options.adapter is None else PrefixReftConfig.from_pretrained(fetch(options.adapter))
    options = _resolve(options, adapter, dataset)
    assert options.model is not None  # resolved
    assert options.max_new_tokens is not None
    problems = load_problems(dataset, evaluation_split(dataset), data_dir=options.data_dir, limit=options.limit)
    tokenizer = load_tokenizer(options.model, options.revision)
    template = get_template(str(options.template), tokenizer)
    _check_template(template, adapter)
    model = load_model(options.model, options.revision, options.dtype)
    generate: Generate = model.generate
    if options.adapter is not None:
        reft_model = PrefixReftModel.from_pretrained(options.adapter, model).eval()
        gate = parse_gate(str(options.gate))

        def generate(inputs, **settings):  # type: ignore[no-untyped-def]
            return reft_model.generate(inputs, gate=gate, **settings)

    decoding = Decoding(
        tokenizer=tokenizer,
        template=template,
        end_token_ids=end_token_ids(model, tokenizer, template),
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        opener=opener,
    )
    folder = claim_output_dir(options)

    name = "base" if adapter is None else "adapter"
    with Scorer(is_numeric(dataset, problems)) as score:
        path = folder / "records" / f"{name}.jsonl"
        records = evaluate(problems, generate, decoding, score, path, model.device, dataset)
    summary = summarise(records)
    results = {
        **provenance(options),
        "base_commit": getattr(model.config, "_commit_hash", None),
        "adapter": None if adapter is None else dataclasses.asdict(adapter),
        "dataset": dataset,
        "template": str(template),
        "opener": opener,
        "end_token_ids": decoding.end_token_ids,
        "evaluation": {name: summary},
    }
    write_json(folder / RESULTS_NAME, results)
    title = f"{dataset}, {len(problems)} problems, greedy, gate {options.gate}"
    print_table(title, EVALUATION_COLUMNS, evaluation_rows({name: summary}))
    print(f"results: {folder / RESULTS_NAME}")


def _resolve(options: EvaluationOptions, adapter: PrefixReftConfig | None, dataset: str) -> EvaluationOptions:
    """Takes base, gate and prompt template from the adapter unless told otherwise."""
    if adapter is None and options.gate not in (None, "off"):
        raise UserError(f"--gate {options.gate} opens an adapter's interventions; pass --adapter, or leave --gate out")
    base, revision, template, gate = EMBEDDED_MODEL, None, "auto", "off"
    if adapter is not None:
        base, revision, gate = adapter.base_model or EMBEDDED_MODEL, adapter.base_revision, adapter.gate
        template = (adapter.template or "auto").partition("/")[0]
        if options.model not in (None, base):
            warnings.warn(f"the adapter was trained on {base}, and is put on {options.model}", stacklevel=2)
    takes_base = options.model is None
    return replace(
        options,
        model=base if takes_base else options.model,
        revision=options.revision or (revision if takes_base else None),
        gate=options.gate or gate,
        template=options.template or template,
        max_new_tokens=options.max_new_tokens or default_max_new_tokens(dataset),
    )


def _check_template(template: PromptTemplate, adapter: PrefixReftConfig | None) -> None:
    """A template whose wording has changed since the adapter was trained is another prompt."""
    trained_with = adapter.template if adapter is not None else None
    if trained_with and trained_with.partition("/")[0] == template.name and trained_with != str(template):
        raise UserError(
            f"the adapter was trained with prompt template {trained_with}, this version has {template};"
            " choose another --template, or the version of reft-math that trained it"
        )
