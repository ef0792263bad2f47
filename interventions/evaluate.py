"""The body of the evaluation commands: a model, with or without an adapter, on a data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from interventions.card import renew_gate
from interventions.config import CONFIG_NAME, PrefixReftConfig
from interventions.model import PrefixReftModel
from interventions.rounding import noise_floor
from reft_math.calibration import (
    GATE_COLUMNS,
    KL_GATES,
    best_gate,
    evaluate_gates,
    gate_records,
    gate_rows,
    gate_table,
    noise_line,
)
from reft_math.card import digest
from reft_math.command import RESULTS_NAME, print_table, provenance
from reft_math.completion import Complete, Decoding, Generate, complete, complete_by_engine
from reft_math.data.fingerprint import about_problems
from reft_math.data.registry import problems_to_choose_by, problems_to_report_on
from reft_math.data.templates import PromptTemplate, get_template
from reft_math.decoding.engine import Engine
from reft_math.decoding.gate import AlwaysOn, PromptOnly, parse_gate
from reft_math.decoding.generation import GatedOutput
from reft_math.errors import UserError
from reft_math.evaluation import (
    SAMPLING_COLUMNS,
    Scorer,
    default_max_new_tokens,
    evaluate,
    is_numeric,
    print_evaluation,
    sampling_rows,
    score_tables,
    summarise,
)
from reft_math.evaluation_options import EvaluationOptions, ModelOptions, RunOptions
from reft_math.figures.kl_profile import kl_profile_figure
from reft_math.files import write_csv, write_figure, write_json
from reft_math.hub import fetch
from reft_math.kl_profile import kl_profile, profile_gates
from reft_math.models import EMBEDDED_MODEL, check_vocabulary, end_token_ids, load_model, load_tokenizer
from reft_math.processes import claim, part_ways
from reft_math.scoring.records import RecordFile

Options = TypeVar("Options", bound=ModelOptions)


@dataclass(frozen=True)
class Setting:
    """What a command decodes with, read and found in order.

    Attributes:
        options: The command's, resolved.
        adapter: The adapter's configuration; None for the base on its own.
        model: The base.
        reft_model: The base with the adapter's interventions, if there is one.
        decoding: Prompts and stopping.
    """

    options: ModelOptions
    adapter: PrefixReftConfig | None
    model: PreTrainedModel
    reft_model: PrefixReftModel | None
    decoding: Decoding

    def generate(self, gate: str) -> Generate:
        """``generate`` under a gate; the base's own where there is no adapter."""
        if self.reft_model is None:
            return self.model.generate  # type: ignore[no-any-return]
        return partial(self.reft_model.generate, gate=gate, handoff=self.options.handoff)

    def completer(self, gate: str) -> Complete:
        """Completions under a gate."""
        return partial(complete, generate=self.generate(gate), decoding=self.decoding, device=self.model.device)

    def claim(self, about: Mapping[str, Any], reft: str | None = None) -> Path:
        """Makes the output folder the run's own: that of these rows, and of these adapters' parameters.

        Args:
            about: `about_problems` of the rows.
            reft: Another adapter that is read beside the first.
        """
        adapters = {"adapter": self.options.adapter, "reft": reft}
        parameters = {name: _parameters(source) for name, source in adapters.items() if source is not None}
        return claim(self.options, {**about["fingerprints"], **parameters})

    def provenance(self) -> dict[str, Any]:
        """For the head of results."""
        return {
            **provenance(self.options),
            "base_commit": getattr(self.model.config, "_commit_hash", None),
            "adapter": None if self.adapter is None else dataclasses.asdict(self.adapter),
            "parameters": None if self.options.adapter is None else _parameters(self.options.adapter),
            "template": str(self.decoding.template),
            "opener": self.decoding.opener,
            "end_token_ids": self.decoding.end_token_ids,
            "stops": self.decoding.stops,
        }


def _parameters(adapter: str) -> str:
    return digest(fetch(adapter, CONFIG_NAME))


def load_setting(options: ModelOptions, dataset: str, opener: str = "") -> Setting:
    """Reads model, tokenizer and adapter, and takes from the adapter what the options leave open.

    Args:
        options: The command's settings.
        dataset: A name `load_problems` knows.
        opener: Text that every completion is made to start with.
    """
    adapter = None if options.adapter is None else PrefixReftConfig.from_pretrained(fetch(options.adapter, CONFIG_NAME))
    options = _resolve(options, adapter, dataset)
    assert options.model is not None  # resolved
    assert options.max_new_tokens is not None
    tokenizer = load_tokenizer(options.model, options.revision)
    template = get_template(str(options.template), tokenizer)
    _check_template(template, adapter)
    model = load_model(options.model, options.revision, options)
    check_vocabulary(model, tokenizer, template)
    reft_model = None
    if options.adapter is not None:
        reft_model = PrefixReftModel.from_pretrained(options.adapter, model).eval()
    decoding = Decoding(
        tokenizer=tokenizer,
        template=template,
        end_token_ids=end_token_ids(model, tokenizer, template),
        max_new_tokens=options.max_new_tokens,
        opener=opener,
    )
    return Setting(options, adapter, model, reft_model, decoding)


def load_beside(setting: Setting, source: str) -> PrefixReftModel:
    """Another adapter on the setting's base, to put beside its own.

    Raises:
        UserError: It was trained on another base, or with other prompts.
    """
    assert setting.adapter is not None
    reft_model = PrefixReftModel.from_pretrained(source, setting.model).eval()
    ours, theirs = ((config.base_model, config.template) for config in (setting.adapter, reft_model.prefix_config))
    if ours != theirs:
        raise UserError(
            f"--reft is put beside --adapter, so it needs the same base and prompt template: {ours}; it has {theirs}"
        )
    return reft_model


def run_evaluation(options: EvaluationOptions, dataset: str, opener: str = "") -> None:
    """Reads everything, claims the output folder, then evaluates: a mistake in the input leaves nothing behind.

    Args:
        options: The command's settings.
        dataset: A name `load_problems` knows.
        opener: Text that every completion is made to start with.
    """
    problems = problems_to_report_on(dataset, options.data_dir)[: options.limit]
    setting = load_setting(options, dataset, opener)
    complete_rows = batch_completer(setting, options)
    about = about_problems(dataset, test=problems)
    folder = setting.claim(about)

    name = "base" if setting.adapter is None else "adapter"
    path = folder / "records" / f"{name}.jsonl"
    with Scorer(is_numeric(dataset, problems)) as score:
        records = evaluate(
            problems,
            complete_rows,
            score,
            path,
            dataset,
            batch_size=options.batch_size,
            samples=options.samples,
            seed=options.seed if options.sampling else None,
        )
    part_ways()
    summary = {**summarise(records), "seconds_per_answer": records.seconds_per_answer}
    results = {**about, "evaluation": {name: summary}, "score_tables": score_tables({name: summary})}
    write_json(folder / RESULTS_NAME, {**setting.provenance(), **results})
    how = "greedy" if options.temperature is None else f"temperature {options.temperature:g}"
    title = f"{dataset}, {len(problems)} problems, {how}, gate {setting.options.gate}"
    print_evaluation(title, {name: summary})
    if options.samples > 1:
        print_table("over problems", SAMPLING_COLUMNS, sampling_rows(summary))
    print(f"results: {folder / RESULTS_NAME}")


def run_calibration(options: RunOptions, dataset: str, gates: Sequence[str] | None, save: bool) -> None:
    """Evaluates gates on the validation split and reports the best.

    Args:
        options: The command's settings, with an adapter.
        dataset: A name `load_problems` knows.
        gates: Candidates, as text; KL gates by default.
        save: Make the best one the adapter's default; then the adapter is a folder.
    """
    if save and not Path(str(options.adapter)).is_dir():
        raise UserError(f"--save writes into the adapter's folder; {options.adapter} is none")
    problems = problems_to_choose_by(dataset, options.data_dir)[: options.limit]
    if not problems:
        raise UserError(f"{dataset} has no validation problems to choose a gate by; take another --dataset")
    setting, gates = load_setting(options, dataset), _gates(gates or KL_GATES)
    assert setting.adapter is not None
    about = about_problems(dataset, validation=problems)
    folder = setting.claim(about)
    with Scorer(is_numeric(dataset, problems)) as score:
        found = evaluate_gates(gates, problems, setting.completer, score, folder / "records", options.batch_size)
    part_ways()
    best = best_gate(found)
    assert setting.reft_model is not None
    noise = noise_floor(setting.reft_model, setting.decoding, problems, options.batch_size)
    results = {
        **about,
        "best": best,
        "gates": found,
        "noise_floor": noise,
        "score_tables": gate_table(found, best),
    }
    write_json(folder / RESULTS_NAME, {**setting.provenance(), **results})
    title = f"{dataset}, {len(problems)} validation problems, greedy; * is the best gate"
    print_table(title, GATE_COLUMNS, gate_rows(found, best))
    print(noise_line(noise))
    if save:
        replace(setting.adapter, gate=best).save_pretrained(str(options.adapter))
        renew_gate(Path(str(options.adapter)), setting.adapter.gate, best)
        print(f"{options.adapter}: the default gate is {best} now, it was {setting.adapter.gate}")
    print(f"results: {folder / RESULTS_NAME}")


def run_kl_profile(options: RunOptions, dataset: str, gates: Sequence[str]) -> None:
    """Measures the divergence of always-on completions by position, and the accuracy of gates.

    Args:
        options: The command's settings, with an adapter.
        dataset: A name `load_problems` knows.
        gates: Gates, as text.
    """
    problems = problems_to_report_on(dataset, options.data_dir)[: options.limit]
    gates, setting = _gates(gates), load_setting(options, dataset)
    about = about_problems(dataset, test=problems)
    folder = setting.claim(about)
    records = folder / "records"
    with Scorer(is_numeric(dataset, problems)) as score:
        every_gate = ["off", *gates, "kl:inf"]
        found = evaluate_gates(every_gate, problems, setting.completer, score, records, options.batch_size)
    part_ways()
    always_on = RecordFile(gate_records(records, "kl:inf")).done
    # In the problems' order: the file's depends on who was done when, and the last digits of a mean on the order.
    profile = kl_profile([always_on[problem.id] for problem in problems])
    tables = {"gates": profile_gates(found), "kl_profile": profile}
    for name, table in tables.items():
        write_csv(folder / f"{name}.csv", table)
    results = {**about, "gates": found, "kl_profile": profile, "score_tables": gate_table(found)}
    write_json(folder / RESULTS_NAME, {**setting.provenance(), **results})
    levels = {"always on": found["kl:inf"], "base": found["off"]}
    figure = kl_profile_figure(profile, {gate: found[gate] for gate in gates}, levels)
    write_figure(folder, "kl_profile", figure)
    print_table(f"{dataset}, {len(problems)} problems, greedy", GATE_COLUMNS, gate_rows(found))
    print(f"divergence by position: {folder / 'kl_profile.csv'}, kl_profile.png, kl_profile.svg")


def _gates(texts: Sequence[str]) -> list[str]:
    """Gates in their usual spelling; a mistake shows before anything is loaded."""
    return [str(parse_gate(text)) for text in texts]


def batch_completer(setting: Setting, options: EvaluationOptions) -> Complete:
    """Completions under the setting's gate, sampled as the options say, by an engine where they name one."""
    gate = str(setting.options.gate)
    decoding = replace(setting.decoding, sampling=options.sampling)
    common = {"decoding": decoding, "device": setting.model.device}
    if options.engine is None:
        return partial(complete, generate=setting.generate(gate), **common)
    if isinstance(parse_gate(gate), AlwaysOn | PromptOnly):
        raise UserError(f"--engine writes what the base does once a gate has closed; gate {gate} never hands over")
    engine = Engine(
        options.engine, decoding.tokenizer, options.engine_model, options.engine_concurrency, options.engine_timeout
    )
    generate = setting.generate(gate) if gate != "off" else _draw_nothing
    return partial(complete_by_engine, generate=generate, engine=engine, **common)


def _draw_nothing(inputs: torch.Tensor, **_: Any) -> GatedOutput:
    """What a gate that is closed from the start leaves to the engine: everything."""
    return GatedOutput(sequences=inputs, closing_positions=torch.zeros(len(inputs), dtype=torch.long))


def _resolve(options: Options, adapter: PrefixReftConfig | None, dataset: str) -> Options:
    """Takes base, gate and prompt template from the adapter unless told otherwise."""
    if adapter is None and options.gate not in (None, "off"):
        raise UserError(f"--gate {options.gate} opens an adapter's interventions; pass --adapter, or leave --gate out")
    if adapter is None and options.handoff != "base":
        raise UserError(f"--handoff {options.handoff} is what follows a gate; pass --adapter, or leave --handoff out")
    template, gate = "auto", "off"
    if adapter is None:
        model, revision = options.model or EMBEDDED_MODEL, options.revision
    else:
        model, revision = adapter.resolve_base(options.model, options.revision)
        template, gate = (adapter.template or "auto").partition("/")[0], adapter.gate
    return replace(
        options,
        model=model,
        revision=revision,
        gate=str(parse_gate(options.gate or gate)),
        template=options.template or template,
        max_new_tokens=options.max_new_tokens or default_max_new_tokens(dataset),
    )


def _check_template(template: PromptTemplate, adapter: PrefixReftConfig | None) -> None:
    """A template whose wording has changed since the adapter was trained is another prompt."""
    trained_with = adapter.template if adapter is not None else None
    if trained_with and trained_with.partition("/")[0] == template.name and not template.is_recorded_as(trained_with):
        raise UserError(
            f"the adapter was trained with prompt template {trained_with}, this version has {template};"
            " choose another --template, or the version of reft-math that trained it"
        )
